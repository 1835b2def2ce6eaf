#!/bin/bash
# Print the manual page: the frame in TEMPLATE, with the help that PROGRAM gives for each of its commands in
# the place of the line @COMMANDS@, so that the page and the program cannot differ.
#
#     make-manual.sh PROGRAM TEMPLATE VERSION
set -euo pipefail
export ASAN_OPTIONS=detect_leaks=0 # of a sanitized build: its tests look for leaks, not its manual page
program=$1 template=$2 version=$3

# Plain text as roff shows it unchanged: a backslash, a hyphen, and a dot or quote that begins a line.
verbatim() {
  printf '.nf\n'
  sed -e 's/\\/\\e/g' -e 's/-/\\-/g' -e "s/^\\([.']\\)/\\\\\\&\\1/"
  printf '.fi\n'
}

# The words of a command; `trace` has commands of its own.
commands() {
  local name sub
  for name in $("$program" list commands --names); do
    echo "$name"
    [ "$name" = trace ] || continue
    for sub in $("$program" trace --help | sed -n '/^Commands:/,/^$/s/^  \([a-z]*\) .*/\1/p'); do
      echo "trace $sub"
    done
  done
}

help_of_all() {
  local words
  commands | while read -r words; do
    printf '.SS %s\n' "${words//-/\\-}"
    # shellcheck disable=SC2086  # one word or two
    "$program" $words --help </dev/null | verbatim
  done
}

while IFS= read -r line; do
  case $line in
  @COMMANDS@) help_of_all ;;
  *) printf '%s\n' "${line//@VERSION@/$version}" ;;
  esac
done <"$template"
