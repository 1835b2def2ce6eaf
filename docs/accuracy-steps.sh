#!/bin/bash
# Make the tables of docs/accuracy-steps.md anew:  docs/accuracy-steps.sh [FOLDER] [PROGRAM]
# FOLDER holds the public measurements (split/splitwise.working.csv); without it those tables are left out.
set -euo pipefail
tree=$(dirname "$(dirname "$(readlink -f "$0")")")
folder=${1-} program=$(readlink -f "${2-$tree/build/kvsim}") page=$tree/docs/accuracy-steps.md
new=$(mktemp) own=$(mktemp -d)
trap 'rm -rf "$new" "$own"' EXIT
# A device file of the reference engine's own kernels, beside the catalogue's of vLLM's.
"$program" calibrate --device h200 --from "$tree/reference/measured/h200/kernels.csv" -o "$own/own-kernels.json" >/dev/null
sed '/^<!-- tables -->$/q' "$page" >"$new"
table() {
  printf '\n## %s\n\n' "$1"
  shift
  "$program" validate "$@"
}
{
  table 'H200, PyTorch (reference/measured/h200)' --each --steps "$tree/reference/measured/h200/pytorch_steps.json"
  table 'H100, PyTorch (reference/measured/h100)' --each --steps "$tree/reference/measured/h100/pytorch_steps.json"
  for run in 8b-calls 8b-long 8b-closed 0.5b-chat; do
    printf '\n## H200, the reference engine: %s\n\n```\n' "$run"
    "$program" validate --steps "$tree/reference/measured/h200/$run/steps.csv.gz"
    (cd "$own" && "$program" validate --steps "$tree/reference/measured/h200/$run/steps.csv.gz" --platform own-kernels.json |
      grep -E 'priced for|operation|steps')
    printf '```\n'
  done
  printf '\n## H200, the reference engine: techniques\n\n```\n'
  cat "$tree/reference/measured/h200/techniques/all-steps.txt"
  printf '```\n'
  [ -z "$folder" ] || table 'A100 and H100, vLLM of 2023 (Splitwise)' --steps "$folder/split/splitwise.working.csv"
} >>"$new"
cat "$new" >"$page"
