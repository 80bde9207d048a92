# shellcheck shell=bash disable=SC2154
# What the tests of the scripts share. Loaded by the .bats files.
bats_require_minimum_version 1.5.0

# Puts the fakes before everything else on PATH.
fake_tools() {
  export FAKE=${BATS_TEST_TMPDIR}/fake
  mkdir -p "${FAKE}/bin" "${FAKE}/codes"
  local tool
  for tool in bk-manifest bk-dump bk-push bk-prune bk-verify docker; do
    cp "${BATS_TEST_DIRNAME}/fake.bash" "${FAKE}/bin/${tool}"
  done
  : >"${FAKE}/calls"
  # Nothing of the machine's own counts.
  unset BK_BIN_DIR "${!BACKUP_@}"
  export XDG_STATE_HOME=${BATS_TEST_TMPDIR}/state
  PATH=${FAKE}/bin:${PATH}
}

# Finds the real tools: BK_BIN_DIR, or else PATH.
real_tools() {
  unset "${!BACKUP_@}"
  PATH=${BK_BIN_DIR:+${BK_BIN_DIR}:}${PATH}
  command -v bk-push >/dev/null || {
    echo "the tools are neither in BK_BIN_DIR nor on PATH" >&2
    return 1
  }
}

# What was called, without the arguments that differ from run to run.
calls() { cut -d' ' -f1,2 "${FAKE}/calls"; }

# Runs a script without any terminal.
alone() { run --separate-stderr setsid -w "$@" </dev/null; }
