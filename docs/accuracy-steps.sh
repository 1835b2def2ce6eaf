#!/bin/bash
# Make the tables of docs/accuracy-steps.md anew:  docs/accuracy-steps.sh [FOLDER] [PROGRAM]
# FOLDER holds the public measurements (split/splitwise.working.csv); without it those tables are left out.
set -euo pipefail
tree=$(dirname "$(dirname "$(readlink -f "$0")")")
folder=${1-} program=$(readlink -f "${2-$tree/build/kvsim}") page=$tree/docs/accuracy-steps.md
new=$(mktemp)
trap 'rm -f "$new"' EXIT
runs=$tree/reference/measured/h200
sed '/^<!-- tables -->$/q' "$page" >"$new"
table() {
  printf '\n## %s\n\n' "$1"
  shift
  "$program" validate "$@"
}
# Every step of each run of the reference engine, at its exact shape, by the device file of its own kernels and by the
# catalogue's, which is of vLLM's.
reference_runs() {
  local run kind price
  printf '\n## H200, the reference engine: steps\n\n'
  echo '| run | priced by | kind | n | measured ms | total | median | p95 | bias |'
  echo '|---|---|---|---:|---:|---:|---:|---:|---:|'
  for run in "$runs"/*/steps.csv.gz; do
    for price in own h200; do
      platform=$price
      [ $price = h200 ] || platform=$runs/device.json
      "$program" validate --steps "$run" --platform "$platform" | grep -E '^  (decode|prefill|mixed|all) steps' |
        while read -r kind _ n measured _ total _ median _ p95 _ bias _; do
          [ $price = own ] || [ "$kind" = all ] || continue
          echo "| $(basename "$(dirname "$run")") | $price | $kind | $n | $measured | $total % | $median % | $p95 % | $bias % |"
        done
    done
  done
}

# The same runs simulated whole: latencies of requests and rates.
whole_runs() {
  printf '\n## H200, the reference engine: whole runs\n\n```\n'
  "$program" validate --measured "$runs" --platform "$runs/device.json" --traces "$tree/traces/samples" |
    sed -n '/runs, error of the prediction/,$p'
  printf '```\n'
}

{
  table 'H200, PyTorch (reference/measured/h200)' --each --steps "$tree/reference/measured/h200/pytorch_steps.json"
  table 'H100, PyTorch (reference/measured/h100)' --each --steps "$tree/reference/measured/h100/pytorch_steps.json"
  reference_runs
  whole_runs
  [ -z "$folder" ] || table 'A100 and H100, vLLM of 2023 (Splitwise)' --steps "$folder/split/splitwise.working.csv"
} >>"$new"
cat "$new" >"$page"
