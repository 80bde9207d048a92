#!/usr/bin/env bash
# Backs up one application (databases, configuration, files) through one pipe of the bk tools, and copies that backup
# to a second destination if there is one. The first backup prints a recovery sheet, to keep elsewhere.
#
# usage: backup.sh [--env-file FILE] [--full] [DEST]
#   --env-file FILE   settings, as in scripts/env.example; the environment beats them
#   --full            store everything again, whatever earlier backups hold
#   DEST              where to, whatever the settings say
# BK_BIN_DIR names the folder of the tools where they are not on PATH.
# exit codes: 0 done; 3 done, but what is listed was left out, or not copied; else that of the first step with a
# reason of its own to fail (table in README.md)
here=$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}" || true)")
# shellcheck source=scripts/common.sh
source "${here}/common.sh"
# shellcheck source=scripts/backup-steps.sh
source "${here}/backup-steps.sh"
# shellcheck source=scripts/backup-copy.sh
source "${here}/backup-copy.sh"

# Sets `stored`: whether this run has stored a backup. Push commits even if its reader has died, so where it failed the
# newest backup at the destination tells.
find_out_what_is_stored() {
  local before after
  case ${codes[7]:-0} in
    [03]) stored=yes ;;
    1 | 1??)
      stored=perhaps
      bk-push manifest latest --from "${BACKUP_DESTINATION_PATH}" --or-none >"${work}/latest.json" 2>/dev/null || return 0
      before=$(grep -m 1 '^"backup":' "${work}/parent.json" || true)
      after=$(grep -m 1 '^"backup":' "${work}/latest.json" || true)
      stored=yes
      [[ ${before} != "${after}" ]] || stored=no
      ;;
    *) stored=no ;;
  esac
}

# Says how the run has failed.
tell_failure() {
  local -A outcome=([yes]='the backup was stored, but not all that follows was done' [no]='no backup was made'
    [perhaps]='it may have been stored: bk-push list shows it')
  printf 'backup.sh: error: %s ended with %s; %s\n' "${step}" "${code}" "${outcome[${stored}]}" >&2
}

main() {
  local base=. from=() to='' full=() codes=(0) code step kept facts=() word=ok copied='' stored=no
  while (($#)); do
    case $1 in
      --env-file) from=("${@:1:2}") base=$(dirname -- "${2:-.}") && shift "$(($# > 1))" ;;
      --full) full=(--full) ;;
      -h | --help) sed -n '2,/^# reason/s/^# \{0,1\}//p' "$0" && exit 0 ;;
      -*) fail "unknown option '$1', see --help" ;;
      *)
        [[ -z ${to} ]] || fail "one destination is wanted, not '${to}' and '$1'"
        to=$1
        ;;
    esac
    shift
  done
  [[ -z ${to} ]] || { unset BACKUP_DESTINATION_TYPE && export BACKUP_DESTINATION_PATH=${to}; }
  begin "${from[@]}" --require BACKUP_APP --require BACKUP_DESTINATION_PATH
  [[ ${BACKUP_ENABLED:-true} == true ]] || { echo 'backup.sh: nothing done: BACKUP_ENABLED is false' && exit 0; }
  [[ ${BACKUP_INCREMENTAL:-true} == true ]] || full=(--full)
  choose_steps "${base}"
  [[ ${postgres[0]}${sqlite[0]}${archive[0]}${add[0]} != catcatcatcat || (-n ${BACKUP_BUCKET:-} && -z ${BACKUP_BUCKET_SKIP:-}) ]] \
    || fail 'no setting says what to back up'
  hold_lock "${BACKUP_STOP_SERVICES:+-x}" # two that stop nothing may go to two destinations
  bk-push manifest latest --from "${BACKUP_DESTINATION_PATH}" --or-none >"${work}/parent.json"
  stop_services
  bk-manifest new --parent "${work}/parent.json" | "${postgres[@]}" | "${globals[@]}" | "${sqlite[@]}" \
    | "${archive[@]}" | "${add[@]}" | "${buckets[@]}" | bk-push --to "${BACKUP_DESTINATION_PATH}" "${full[@]}" \
    | bk-verify --from "${BACKUP_DESTINATION_PATH}" \
    | "${prune[@]}" >"${work}/run.json" 2>"${work}/prune.log" || codes=("${PIPESTATUS[@]}")
  sed '/^bk-prune: kept /d' "${work}/prune.log" >&2
  kept=$(sed -n 's/^bk-prune: kept/; kept/p' "${work}/prune.log")
  judge
  find_out_what_is_stored
  # The first backup prints the recovery sheet, whatever failed behind it.
  if [[ ${stored} == yes ]] && grep -q '^"backup":null' "${work}/parent.json"; then
    bk-manifest settings "${from[@]}" --sheet || true
  fi
  if [[ ${code} != [03] ]]; then
    tell_failure
    # One that was stored and verified is copied, whatever prune has found at the first destination.
    [[ ${stored}${codes[8]:-1} != yes[03] ]] || copy_latest
    exit "${code}"
  fi
  make_copy
  [[ ${code} == 0 ]] || word='done with warnings'
  # shellcheck disable=SC2312 # a failure shows: the facts are missing
  mapfile -t facts < <(bk-manifest show "${work}/run.json" | sed -n 's/^\(backup\|entries\|stored\) *//p')
  printf 'backup.sh: %s %s: %s; stored %s%s%s\n' "${word}" "${facts[0]}" "${facts[1]}" "${facts[2]%% by *}" "${kept}" "${copied}"
  exit "${code}"
}

main "$@"
