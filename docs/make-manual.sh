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

commands() {
  local names name
  names=$("$program" list commands --names)
  for name in $names; do
    printf '.SS %s\n' "${name//-/\\-}"
    "$program" "$name" --help | verbatim
  done
}

while IFS= read -r line; do
  case $line in
  @COMMANDS@) commands ;;
  *) printf '%s\n' "${line//@VERSION@/$version}" ;;
  esac
done <"$template"
