#!/usr/bin/env bash
# Removes the lesson's lab. Nothing is left of it; a second time does nothing.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

readonly lab=calico-ipam

# The program as built in this repository, an installed one, or the command that `tortie lab env` made known.
destroy() {
  local candidate
  for candidate in "${TORTIE:-}" ../../target/release/tortie ../../target/debug/tortie; do
    if [[ -x "$candidate" ]]; then
      "$candidate" containerlab "$@"
      return
    fi
  done
  if command -v tortie >/dev/null; then
    tortie containerlab "$@"
  elif command -v containerlab >/dev/null; then
    containerlab "$@"
  else
    echo "destroy.sh: there is no tortie; run 'make' in the repository, or put it on PATH" >&2
    return 1
  fi
}

KUBECONFIG=$PWD/$lab.kubeconfig destroy destroy -t "$lab.clab.yaml" --cleanup
rm -f "$lab.kubeconfig"
