#!/usr/bin/env bash
# Removes the lesson's lab. Nothing is left of it; a second time does nothing.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

readonly lab=calico-ipam

for candidate in "${TORTIE:-}" ../../target/release/tortie ../../target/debug/tortie "$(command -v tortie || true)"; do
  if [[ -x "$candidate" ]]; then
    tortie=$candidate
    break
  fi
done
if [[ -z "${tortie:-}" ]]; then
  echo "destroy.sh: there is no tortie; run 'make' in the repository, or put it on PATH" >&2
  exit 1
fi

KUBECONFIG=$PWD/$lab.kubeconfig "$tortie" containerlab destroy -t "$lab.clab.yaml" --cleanup
rm -f "$lab.kubeconfig"
