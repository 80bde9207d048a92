#!/usr/bin/env bash
# Fetches PostgreSQL's own regression tests, src/test/regress of the source package that the
# installed server was built from, and builds the library of C functions that they call. Their
# licence is PostgreSQL's: COPYRIGHT beside them. Nothing is installed, and the machine's package
# sources stay as they are: those of the source packages are read from a list of our own.
#
# usage: regress-files.sh BIN DIR
#   BIN  the folder with the server's programs
#   DIR  where sql/, expected/, data/, parallel_schedule and the libraries go; once it is there, it
#        is believed
# exit codes: 0 DIR holds them; 1 they could not be had
set -Eeuo pipefail
shopt -s inherit_errexit nullglob
export LC_ALL=C

work=''

# Downloads the source package, and the headers of exactly the server's version. $1: that version;
# $2: the major one.
download() {
  local list source own=(-o "Dir::Etc::sourceparts=${work}/sources" -o Dir::Etc::sourcelist=/dev/null
    -o "Dir::State::lists=${work}/lists" -o "Dir::Cache=${work}/cache" -o APT::Sandbox::User=root)
  mkdir -- "${work}/sources" "${work}/lists" "${work}/cache"
  for list in /etc/apt/sources.list /etc/apt/sources.list.d/*.list; do
    [[ ! -e ${list} ]] || sed -n 'p; s/^deb /deb-src /p' "${list}" >"${work}/sources/${list##*/}.list"
  done
  for list in /etc/apt/sources.list.d/*.sources; do
    sed 's/^Types:.*/Types: deb deb-src/' "${list}" >"${work}/sources/${list##*/}"
  done
  # A list that cannot be had matters only if ours is in it, which shows next.
  apt-get "${own[@]}" update -qq 2>/dev/null || true
  cd -- "${work}"
  apt-get "${own[@]}" download -qq "postgresql-server-dev-$2=$1" 2>errors || { cat errors >&2 && return 1; }
  # A mirror may have the server's packages without their sources: those of another minor version do.
  for source in "$1" $(apt-cache "${own[@]}" madison "postgresql-$2" 2>/dev/null | sed -n 's/^[^|]*| *\([^ ]*\) .*Sources$/\1/p'); do
    apt-get "${own[@]}" source --download-only -qq "postgresql-$2=${source}" 2>errors && return
  done
  cat errors >&2
  return 1
}

main() {
  local bin=$1 dir said version major
  dir=$(readlink -m -- "$2")
  [[ ! -e ${dir} ]] || return 0
  said=$("${bin}/postgres" --version)
  # 15.18 (Debian 15.18-0+deb12u1)
  [[ ${said} =~ ([0-9]+)\.[0-9]+' ('[A-Za-z]+' '(.+)')'$ ]] \
    || { echo "regress-files.sh: error: '${said}' is no server of a package, so its source is not known" >&2 && return 1; }
  major=${BASH_REMATCH[1]} version=${BASH_REMATCH[2]}
  mkdir -p -- "${dir%/*}"
  work=$(mktemp -d -- "${dir}.XXXXXX") && trap 'rm -rf -- "${work}"' EXIT
  download "${version}" "${major}"
  bsdtar -xf postgresql-*.orig.tar.* --no-same-owner --no-same-permissions --strip-components 1 '*/src/test/regress' '*/COPYRIGHT'
  bsdtar -xOf postgresql-server-dev-*.deb 'data.tar*' | bsdtar -xf - './usr/include/*'
  cd -- src/test/regress
  cc -O1 -fPIC -shared -w -I . -I "${work}/usr/include/postgresql/${major}/server" -o regress.so regress.c
  cp -- "${bin%/bin}/lib/autoinc.so" "${bin%/bin}/lib/refint.so" "${work}/COPYRIGHT" .
  # Another run may have been faster.
  mv -T -- "${work}/src/test/regress" "${dir}" 2>/dev/null || [[ -e ${dir} ]]
}

main "$@"
