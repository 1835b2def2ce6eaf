#!/bin/bash
# Make docs/claims.md and its picture anew: docs/claims.sh [PROGRAM]   (PROGRAM: build/kvsim)
set -euo pipefail
tree=$(dirname "$(dirname "$(readlink -f "$0")")")
program=${1-$tree/build/kvsim}
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
{
  sed '/^<!-- tables -->$/q' "$tree/docs/claims.md"
  "$program" claims --markdown -o "$scratch/report"
} >"$scratch/claims.md"
mv "$scratch/claims.md" "$tree/docs/claims.md"
mkdir -p "$tree/docs/images"
mv "$scratch/report/claims.svg" "$tree/docs/images/claims.svg"
