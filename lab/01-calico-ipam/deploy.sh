#!/usr/bin/env bash
# Deploys the lesson's lab and installs Calico, from a bare shell. Ends when everything is Available and Running.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

readonly lab=calico-ipam
readonly patience=300 # seconds

# The program as built in this repository, else an installed one.
find_tortie() {
  local candidate
  for candidate in "${TORTIE:-}" ../../target/release/tortie ../../target/debug/tortie; do
    if [[ -x "$candidate" ]]; then
      echo "$candidate"
      return
    fi
  done
  command -v tortie || {
    echo "deploy.sh: there is no tortie; run 'make' in the repository, or put it on PATH" >&2
    return 1
  }
}

tortie=$(find_tortie)
command -v kubectl >/dev/null || {
  echo "deploy.sh: there is no kubectl; install it (Debian: apt-get install kubernetes-client)" >&2
  exit 1
}
# containerlab, kind and calicoctl on PATH; KUBECONFIG is calico-ipam.kubeconfig in this directory.
environment=$("$tortie" lab env)
eval "$environment"

echo "==> The cluster"
containerlab destroy -t "$lab.clab.yaml"
containerlab deploy -t "$lab.clab.yaml"
(umask 077 && kind get kubeconfig --name="$lab" >"$lab.kubeconfig")

echo "==> Calico: its resource definitions and its operator"
kubectl create -f ../../manifests/operator-crds.yaml -f ../../manifests/tigera-operator.yaml

echo "==> Calico: what is wanted of it"
kubectl apply -f calico-cni-config/custom-resources.yaml

echo "==> Waiting until all of it is available"
# One watch sees each TigeraStatus come and change; looking again and again would take longer.
columns='NAME:.metadata.name,AVAILABLE:.status.conditions[?(@.type=="Available")].status'
declare -A available=()
exec 3< <(exec timeout "$patience" kubectl get tigerastatus --watch --no-headers -o "custom-columns=$columns")
watch=$!
while read -r name is_available <&3; do
  [[ "${available[$name]:-}" == "$is_available" ]] || echo "$name: Available=$is_available"
  available[$name]=$is_available
  if [[ "${available[apiserver]:-}" == True && "${available[calico]:-}" == True ]]; then
    break
  fi
done
kill "$watch" 2>/dev/null || true
exec 3<&-
if [[ "${available[apiserver]:-}" != True || "${available[calico]:-}" != True ]]; then
  echo "deploy.sh: Calico did not become available within $patience s:" >&2
  kubectl get tigerastatus -o yaml >&2
  exit 1
fi
# Asked of the whole list at once: `kubectl wait` asks for each pod in turn, which takes seconds even when all run.
readonly readiness='{range .items[*]}{.metadata.namespace}/{.metadata.name}={.status.conditions[?(@.type=="Ready")].status}{"\n"}{end}'
deadline=$((SECONDS + patience))
while pods=$(kubectl get pods --all-namespaces -o jsonpath="$readiness") && waiting=$(grep -v '=True$' <<<"$pods"); do
  if ((SECONDS > deadline)); then
    printf 'deploy.sh: these pods do not run after %s s:\n%s\n' "$patience" "$waiting" >&2
    exit 1
  fi
done
if [[ -z "$pods" ]]; then
  echo "deploy.sh: the API server does not list the pods any more" >&2
  exit 1
fi

echo "==> Done. In this directory:"
echo "    eval \"\$($tortie lab env)\""
echo "    calicoctl ipam show"
