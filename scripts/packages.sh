# shellcheck shell=bash
# Installs what demo.sh and test.sh miss, through Debian's package manager. It is sourced.

missing=() reasons='' as_root=()
[[ ${EUID} == 0 ]] || as_root=(sudo)

# Notes a package if a command is missing. $1: the command, or a file of it; $2: the package; $3: what it is for.
need() {
  [[ -e $1 ]] || command -v "$1" >/dev/null || missing+=("$2") reasons+="  $2: $3"$'\n'
}

# Says what is installed and why, and installs it.
install_missing() {
  ((${#missing[@]})) || return 0
  printf 'These packages are missing; they are installed now, with apt-get:\n%s' "${reasons}" >&2
  if ! command -v apt-get >/dev/null || ! command -v "${as_root[0]:-apt-get}" >/dev/null; then
    echo 'There is no apt-get, or no sudo to run it with: please install them by hand.' >&2
    exit 1
  fi
  "${as_root[@]}" apt-get update -qq </dev/null >&2
  "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive \
    apt-get install -y -qq --no-install-recommends "${missing[@]}" </dev/null >&2
  missing=() reasons=''
}
