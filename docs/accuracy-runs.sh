#!/bin/bash
# Make the tables of docs/accuracy-runs.md anew from a folder of measured runs.
#
#     docs/accuracy-runs.sh MEASURED [PROGRAM]     PROGRAM: build/kvsim
#
# What stands above the line "<!-- tables -->" is written by hand and stays.
set -euo pipefail
tree=$(dirname "$(dirname "$(readlink -f "$0")")")
measured=${1:?a folder of measured runs is needed}
program=${2-$tree/build/kvsim}
page=$tree/docs/accuracy-runs.md
new=$(mktemp)
trap 'rm -f "$new"' EXIT
sed '/^<!-- tables -->$/q' "$page" >"$new"
"$program" validate --measured "$measured" --markdown 2>>"$new.notes" | sed 's/[[:space:]]*$//' >>"$new"
printf '\n%s rows were not simulated (an engine or a workload that the file does not say enough of, or weights that do not fit by the settings known).\n' \
  "$(grep -c 'not simulated' "$new.notes" || true)" >>"$new"
rm -f "$new.notes"
cat "$new" >"$page"
