#!/usr/bin/env bash
# Runs all tests: those in Rust, the examples in the documentation, those of the scripts. What they
# need and is missing is installed through apt-get, which is said first. Those that need a PostgreSQL
# server start one of their own in a temporary folder; a server that is there is not touched. One of
# them downloads PostgreSQL's own regression tests into the target folder: regress-files.sh.
#
# usage: test.sh
# exit codes: 0 all passed; 1 something failed or was skipped. The last line counts them.
set -Eeuo pipefail
shopt -s inherit_errexit
export LC_ALL=C
here=$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}" || true)")
# shellcheck source=scripts/packages.sh
source "${here}/packages.sh"

# Installs what is missing.
prepare() {
  local server=(/usr/lib/postgresql/*/bin/postgres) settings=/etc/postgresql-common/createcluster.conf
  if [[ ! -e ${server[0]} ]]; then
    # Debian's package would make a server of its own and start it; nobody asked for that one.
    need "${settings}" postgresql-common 'holds the setting that keeps Debian from starting a server'
    install_missing
    printf 'create_main_cluster = false # test.sh\n' | "${as_root[@]}" tee -a "${settings}" >/dev/null
  fi
  if [[ ! -e /usr/sbin/sshd ]]; then
    # Debian's package would start an ssh server for everyone, now and at every boot; this file forbids it.
    "${as_root[@]}" mkdir -p /etc/ssh
    "${as_root[@]}" touch /etc/ssh/sshd_not_to_be_run
  fi
  need /usr/sbin/sshd openssh-server 'an ssh server of the tests'\'' own; Debian'\''s stays off (/etc/ssh/sshd_not_to_be_run)'
  need ssh openssh-client 'reaches it'
  need rsync rsync 'sends backups to another host'
  need /usr/bin/rrsync rsync 'an account that may run nothing but rsync'
  need cc gcc 'the linker; parts of SQLite and zstd are C'
  need /usr/include/stdlib.h libc6-dev 'what gcc links against'
  need "${server[0]}" postgresql 'a server of the tests'\'' own, and pg_dump'
  need /usr/sbin/pgbouncer pgbouncer 'a pooler, which a dump must notice'
  need sqlite3 sqlite3 'makes and reads databases'
  need jq jq 'reads manifests as a person would'
  need age age 'encrypts backups and opens them'
  need gpg gnupg 'does the same'
  need zstd zstd 'unpacks backups where bk is not there'
  need bsdtar libarchive-tools 'reads our volumes as another program'
  need python3 python3 'its tarfile reads our volumes, too'
  need strace strace 'shows what is written to the disk before what'
  need bats bats 'runs the tests of the scripts'
  need docker docker.io 'runs a database in a container'
  need docker-compose docker-compose 'starts it as an application would'
  install_missing
  need docker docker-cli 'its client, which since Debian 13 has a package of its own'
  install_missing
  [[ -e ${server[0]} ]] || "${as_root[@]}" sed -i '/# test.sh$/d' "${settings}"
}

# Not local: the trap runs when main has returned.
log=''

# Adds what a runner's output says to `passed`, `failed` and `skipped`. $1: the file with it.
count() {
  local line
  local nextest='([0-9]+) passed' test='^test result: .* ([0-9]+) passed; ([0-9]+) failed; ([0-9]+) ignored'
  while IFS= read -r line; do
    if [[ ${line} =~ ${test} ]]; then
      passed=$((passed + BASH_REMATCH[1])) failed=$((failed + BASH_REMATCH[2])) skipped=$((skipped + BASH_REMATCH[3]))
    elif [[ ${line} == *Summary*'tests run:'* ]]; then
      [[ ! ${line} =~ ${nextest} ]] || passed=$((passed + BASH_REMATCH[1]))
      [[ ! ${line} =~ ([0-9]+)\ failed ]] || failed=$((failed + BASH_REMATCH[1]))
      [[ ! ${line} =~ ([0-9]+)\ timed\ out ]] || failed=$((failed + BASH_REMATCH[1]))
      [[ ! ${line} =~ ([0-9]+)\ skipped ]] || skipped=$((skipped + BASH_REMATCH[1]))
    elif [[ ${line} =~ ^(ok|not\ ok)\ [0-9]+ ]]; then
      case ${line} in
        not*) failed=$((failed + 1)) ;;
        *'# skip'*) skipped=$((skipped + 1)) ;;
        *) passed=$((passed + 1)) ;;
      esac
    fi
  done <"$1"
}

main() {
  local passed=0 failed=0 skipped=0 code=0 workspace=(--manifest-path "${here}/../Cargo.toml" --locked --workspace)
  prepare
  log=$(mktemp) && trap 'rm -f -- "${log}"' EXIT
  if cargo nextest --version >/dev/null 2>&1; then
    cargo nextest run "${workspace[@]}" --config-file "${here}/../.ci/nextest.toml" --no-fail-fast --no-tests=fail </dev/null 2>&1 | tee "${log}" || code=1
  else
    cargo test "${workspace[@]}" --no-fail-fast --all-targets </dev/null 2>&1 | tee "${log}" || code=1
  fi
  cargo test "${workspace[@]}" --no-fail-fast --doc </dev/null 2>&1 | tee -a "${log}" || code=1
  cargo build "${workspace[@]}" --bins --quiet
  BK_BIN_DIR=$(cargo metadata --locked --no-deps --format-version 1 --manifest-path "${here}/../Cargo.toml" \
    | sed 's/.*"target_directory":"\([^"]*\)".*/\1/')/debug
  export BK_BIN_DIR
  bats --tap "${here}/../tests/scripts" </dev/null 2>&1 | tee -a "${log}" || code=1
  sed -i 's/\x1b\[[0-9;]*m//g' "${log}"
  count "${log}"
  # A build that failed, or a runner that died, has no count of its own.
  ((code == 0 || failed > 0)) || failed=1
  ((skipped == 0)) || { echo "${skipped} skipped, which is no pass" && failed=$((failed + skipped)); }
  echo "${passed} passed, ${failed} failed"
  ((failed == 0))
}

main "$@"
