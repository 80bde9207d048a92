#!/usr/bin/env bash
# Runs all tests: those in Rust, the examples in the documentation, those of the scripts. What they
# need and is missing is installed through apt-get, which is said first. Those that need a PostgreSQL
# server or an object store start one of their own in a temporary folder; a server that is there is not
# touched. One of them downloads PostgreSQL's own regression tests into the target folder: regress-files.sh.
#
# usage: test.sh
# exit codes: 0 all passed; 1 something failed or was skipped. The last line counts them.
set -Eeuo pipefail
shopt -s inherit_errexit
export LC_ALL=C
here=$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}" || true)")
# shellcheck source=scripts/test-packages.sh
source "${here}/test-packages.sh"

# Not local: the trap runs when main has returned.
work=''

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
  local log target passed=0 failed=0 skipped=0 code=0 workspace=(--manifest-path "${here}/../Cargo.toml" --locked --workspace)
  prepare
  cargo build "${workspace[@]}" --bins || { echo '0 passed, 1 failed' && return 1; }
  target=$(cargo metadata --locked --no-deps --format-version 1 --manifest-path "${here}/../Cargo.toml" \
    | sed 's/.*"target_directory":"\([^"]*\)".*/\1/')
  work=$(mktemp -d -p "${target}") && chmod 755 "${work}" && trap 'rm -rf -- "${work}"' EXIT
  log=${work}/log
  # Kept aside: with the tests cargo builds them again, with features of the tests, under the same names.
  mkdir -- "${work}/bin" && ln -- "${target}"/debug/bk-{manifest,dump,push,prune,verify} "${work}/bin"
  export BK_BIN_DIR=${work}/bin
  if cargo nextest --version >/dev/null 2>&1; then
    cargo nextest run "${workspace[@]}" --config-file "${here}/../.ci/nextest.toml" --no-fail-fast --no-tests=fail </dev/null 2>&1 | tee "${log}" || code=1
  else
    cargo test "${workspace[@]}" --no-fail-fast --all-targets </dev/null 2>&1 | tee "${log}" || code=1
  fi
  cargo test "${workspace[@]}" --no-fail-fast --doc </dev/null 2>&1 | tee -a "${log}" || code=1
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
