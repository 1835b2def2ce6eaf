#!/bin/bash
# Run the cases of a folder and print TAP: each CASE.test is commands with what they must print and return.
#
#     run_cases.sh PROGRAM SOURCE_ROOT FOLDER [CASE...]
#
# A case runs in an empty folder of its own; `kvsim` is the program, $TREE the top of the source tree. Its lines:
#
#     # comment
#     $ COMMAND       run by bash; a line `| MORE` continues it
#     > TEXT          a line of standard output
#     2> TEXT         a line of standard error
#     ! 2             the exit status (default 0)
#
# `...` stands for any text in a line, and alone on a line for any number of lines. What is not expected must not
# come: no `>` means that the command prints nothing.
set -u
program=$1 TREE=$(readlink -f "$2") folder=$3
shift 3
export TREE LC_ALL=C.UTF-8
PATH=$(dirname "$(readlink -f "$program")"):$PATH
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

# Whether the lines of file $2 are those of the pattern file $1.
matches() {
  awk '
    function regex(text,   out, i, c) {
      gsub(/\.\.\./, "\001", text)
      out = "^"
      for (i = 1; i <= length(text); i++) {
        c = substr(text, i, 1)
        if (c == "\001") out = out ".*"
        else if (c ~ /[A-Za-z0-9 _,:;=<>%@#"\/\x27~-]/ || c > "~") out = out c
        else if (c == "^") out = out "\\^"
        else if (c == "\\") out = out "\\\\"
        else out = out "[" c "]"
      }
      return out "$"
    }
    NR == FNR { pattern[++p] = $0; next }
    { line[++n] = $0 }
    END {
      # Greedy with a way back to the last "...": i in lines, j in patterns.
      i = j = 1; star = 0
      while (i <= n) {
        if (j <= p && pattern[j] == "...") { star = j++; from = i }
        else if (j <= p && line[i] ~ regex(pattern[j])) { i++; j++ }
        else if (star) { i = ++from; j = star + 1 }
        else exit 1
      }
      while (j <= p && pattern[j] == "...") j++
      exit j <= p
    }' "$1" "$2"
}

# Run one command of a case and compare; what differs goes to standard output.
step() {
  local found
  (cd "$work" && bash -c "$command" >"$scratch/stdout" 2>"$scratch/stderr" </dev/null)
  found=$?
  local stream bad=0
  [ "$found" -eq "$status" ] || { echo "exit status $found, expected $status"; bad=1; }
  for stream in stdout stderr; do
    matches "$scratch/expected-$stream" "$scratch/$stream" && continue
    bad=1
    echo "$stream is"
    head -n 30 "$scratch/$stream" | cut -c 1-200 | sed 's/^/  /'
    echo "expected"
    sed 's/^/  /' "$scratch/expected-$stream"
  done
  [ $bad -eq 0 ] || { echo "command: $command"; return 1; }
}

begin() {
  command=$1 status=0
  : >"$scratch/expected-stdout"
  : >"$scratch/expected-stderr"
}

run_case() {
  local line command='' status=0
  while IFS= read -r line || [ -n "$line" ]; do
    case $line in
    '$ '*)
      [ -z "$command" ] || step || return 1
      begin "${line#??}"
      ;;
    '| '*) command+=$'\n'${line#??} ;;
    '|') command+=$'\n' ;;
    '> '*) printf '%s\n' "${line#??}" >>"$scratch/expected-stdout" ;;
    '>') echo >>"$scratch/expected-stdout" ;;
    '2> '*) printf '%s\n' "${line#???}" >>"$scratch/expected-stderr" ;;
    '2>') echo >>"$scratch/expected-stderr" ;;
    '! '*) status=${line#??} ;;
    '#'* | '') ;;
    *) echo "cannot be understood: $line"; return 1 ;;
    esac
  done <"$1"
  [ -n "$command" ] || { echo "no command"; return 1; }
  step
}

[ $# -gt 0 ] || set -- "$folder"/*.test
count=0 failures=0
for file; do
  [ -f "$file" ] || file=$folder/$file.test
  work=$scratch/work
  rm -rf "$work"
  mkdir "$work"
  count=$((count + 1))
  if run_case "$file" >"$scratch/said"; then
    echo "ok $count - $(basename "$file" .test)"
  else
    failures=$((failures + 1))
    echo "not ok $count - $(basename "$file" .test)"
    sed 's/^/# /' "$scratch/said"
  fi
done
echo "1..$count"
[ $failures -eq 0 ]
