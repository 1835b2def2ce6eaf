#!/bin/bash
# A folder of programs that run where only the C library and the NVIDIA driver are installed.
#
#     bundle.sh FOLDER FILE...
#
# FILEs are copied into FOLDER with every shared library that they need beside the C library's own; the programs look for
# libraries in their own folder first (DT_RPATH $ORIGIN).
set -eu
folder=$1
shift
rm -rf "$folder"
mkdir -p "$folder"
cp -L "$@" "$folder"
# "name => path (address)"; what belongs to the C library stays behind, it must fit the system's loader.
ldd "$@" 2>/dev/null | awk '$2 == "=>" && $3 ~ /^\// && !seen[$1]++ {print $3}' |
  grep -Ev '/(ld-linux.*|lib(c|m|dl|rt|pthread|resolv))\.so\.[0-9]+$' | xargs -r cp -L -t "$folder"
for file in "$folder"/*; do
  case $(head -c 4 "$file" | tail -c 3) in ELF) strip --strip-debug "$file" ;; esac
done
du -sh "$folder"
