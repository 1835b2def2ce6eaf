#!/bin/bash
# Make anew what the documentation shows of the program: the reference pages, what the commands in the ```console
# blocks of README.md and examples/README.md print, and the pictures.
#
#     docs/regenerate.sh [PROGRAM]           rewrite them (PROGRAM: build/kvsim)
#     docs/regenerate.sh --check [PROGRAM]   change nothing; fail and show what differs (pictures aside, which
#                                            depend on gnuplot's version)
set -euo pipefail
check=''
[ "${1-}" != --check ] || { check=1; shift; }
tree=$(dirname "$(dirname "$(readlink -f "$0")")")
program=$(readlink -f "${1-$tree/build/kvsim}")
PATH=$(dirname "$program"):$PATH
export LC_ALL=C.UTF-8
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
mkdir "$scratch/new" "$scratch/work"
ln -s "$tree/traces" "$tree/examples" "$scratch/work/"

# Copy standard input to standard output with each console block's output as it is now.
rerun() {
  local line inside='' skipping=''
  while IFS= read -r line; do
    case $line in
    '```console') inside=1 ;;
    '```') inside='' skipping='' ;;
    '$ '*)
      if [ -n "$inside" ]; then
        skipping=1
        printf '%s\n' "$line"
        (cd "$scratch/work" && bash -c "${line#??}" 2>"$scratch/stderr" </dev/null) ||
          { echo "regenerate.sh: $line: $(cat "$scratch/stderr")" >&2; return 1; }
        continue
      fi
      ;;
    esac
    [ -n "$skipping" ] || printf '%s\n' "$line"
  done
}

"$program" docs -o "$scratch/new/docs"
mkdir -p "$scratch/new/examples" "$scratch/pictures"
for page in README.md examples/README.md; do
  rerun <"$tree/$page" >"$scratch/new/$page"
done

if [ -n "$check" ]; then
  status=0
  while IFS= read -r page; do
    diff -u --label "$page" --label "$page as it should be" "$tree/$page" "$scratch/new/$page" || status=1
  done < <(cd "$scratch/new" && find . -type f -printf '%P\n' | sort)
  for page in "$tree"/docs/techniques/*.md; do
    [ -e "$scratch/new/docs/techniques/${page##*/}" ] || { echo "docs/techniques/${page##*/} is of no technique"; status=1; }
  done
  [ $status -eq 0 ] || echo 'docs/regenerate.sh makes them anew.'
  exit $status
fi
rm -rf "$tree/docs/techniques"
cp -r "$scratch/new/." "$tree/"
mkdir -p "$tree/docs/images"
cp "$scratch/work/runs/chat/latency-cdf.svg" "$tree/docs/images/chat-latency.svg"
cp "$scratch/work/runs/chat-compare/comparison.svg" "$tree/docs/images/kivi-comparison.svg"
