#!/bin/bash
# Sets kvsim up on Debian 12 and Ubuntu 24.04. What each command does is in usage() below.
set -euo pipefail
cd "$(dirname "$(readlink -f "$0")")"

usage() {
  cat <<'END'
./setup.sh                      install what is missing, build, replay a sample trace, say where the report is
./setup.sh test [OPTION...]     install what is missing, build, run all tests
./setup.sh install [OPTION...]  install what is missing, build, install kvsim (OPTION: --prefix=/usr/local, say)
./setup.sh tools                install what .ci/run needs besides: compiler and checkers of LLVM 14

OPTIONs go to `meson setup`. DESTDIR is honoured by install. The build is in build/, the sample's report in runs/.
END
}

BUILD_PACKAGES="meson ninja-build gcc libc6-dev pkg-config libglib2.0-dev libjansson-dev libgraphviz-dev zlib1g-dev
  gnuplot-nox graphviz"
# One version, and so one verdict, on both systems.
CHECK_PACKAGES="clang-14 libclang-rt-14-dev clang-format-14 clang-tidy-14"
SAMPLE=traces/samples/chat.jsonl

fail() {
  echo "setup.sh: $*" >&2
  exit 1
}

missing_of() {
  local package
  for package; do
    dpkg-query -W -f='${db:Status-Status}' "$package" 2>/dev/null | grep -qx installed || echo "$package"
  done
}

as_root() {
  if [ "$(id -u)" -eq 0 ]; then
    "$@"
  else
    command -v sudo >/dev/null || fail "needs root or sudo, to run: $*"
    sudo "$@"
  fi
}

# What apt-get says matters only if it fails, and then its end.
apt() {
  local output
  output=$(as_root env DEBIAN_FRONTEND=noninteractive apt-get -q "$@" 2>&1) || { tail -n 3 <<<"$output" >&2; return 1; }
}

# Install those of the named packages that are not there; without any, touch neither apt nor the network.
need() {
  local missing
  command -v dpkg-query >/dev/null && command -v apt-get >/dev/null ||
    fail "this system has no apt; install the like of: $(echo $*), then: meson setup build && ninja -C build"
  missing=$(missing_of "$@" | xargs)
  [ -n "$missing" ] || return 0
  if [ "$(id -u)" -ne 0 ]; then
    command -v sudo >/dev/null || fail "needs root or sudo, to run: apt-get install $missing"
  fi
  echo "Installing $missing"
  apt update || echo "setup.sh: apt-get update failed, trying with the lists that are there" >&2
  apt install -y --no-install-recommends $missing || fail "apt-get could not install: $missing"
}

build() {
  need $BUILD_PACKAGES
  if [ -f build/build.ninja ]; then
    # Also looks for test folders that have come since.
    meson setup --reconfigure build "$@"
  else
    meson setup build "$@"
  fi
  ninja -C build
}

# As root only where the prefix needs it.
install_built() {
  local folder
  folder=${DESTDIR-}$(meson introspect build --buildoptions |
    python3 -c 'import json, sys; print(next(o["value"] for o in json.load(sys.stdin) if o["name"] == "prefix"))')
  until [ -e "$folder" ]; do folder=$(dirname "$folder"); done
  if [ -w "$folder" ]; then
    meson install -C build --no-rebuild
  else
    as_root env DESTDIR="${DESTDIR-}" meson install -C "$PWD/build" --no-rebuild
  fi
  # The loader's list of libraries, for programs of others that use ours.
  [ -n "${DESTDIR-}" ] || [ -w "$folder" -a "$(id -u)" -ne 0 ] || as_root ldconfig
}

replay_sample() {
  build/kvsim run "$SAMPLE" -o runs/sample
  [ -s runs/sample/report.html ] || fail "the replay left no report in runs/sample"
  echo
  echo "The report: $PWD/runs/sample/report.html"
}

command=${1:-sample}
[ $# -eq 0 ] || shift
case $command in
sample)
  build
  replay_sample
  ;;
test)
  build "$@"
  meson test -C build --no-rebuild --print-errorlogs
  ;;
install)
  build "$@"
  install_built
  ;;
tools)
  need $CHECK_PACKAGES
  ;;
help | -h | --help)
  usage
  ;;
*)
  usage >&2
  exit 2
  ;;
esac
