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

# Prints the recovery sheet if this run stored the first backup, whatever failed behind that. Arguments: those of
# bk-manifest settings.
print_sheet() {
  grep -q '^"backup":null' "${work}/parent.json" || return 0
  if [[ ${codes[7]:-0} != [03] ]]; then
    bk-push manifest latest --from "${BACKUP_DESTINATION_PATH}" --or-none >"${work}/latest.json" 2>/dev/null || return 0
    ! grep -q '^"backup":null' "${work}/latest.json" || return 0
  fi
  bk-manifest settings "$@" --sheet
}

main() {
  local base=. from=() full=() codes=(0) code step kept facts=() word=ok copied='' outcome='no backup was made'
  while (($#)); do
    case $1 in
      --env-file) from=("${@:1:2}") base=$(dirname -- "${2:-.}") && shift "$(($# > 1))" ;;
      --full) full=(--full) ;;
      -h | --help) sed -n '2,/^# reason/s/^# \{0,1\}//p' "$0" && exit 0 ;;
      -*) fail "unknown option '$1', see --help" ;;
      *) unset BACKUP_DESTINATION_TYPE && export BACKUP_DESTINATION_PATH=$1 ;;
    esac
    shift
  done
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
  # shellcheck disable=SC2310 # nothing in it ends the script
  print_sheet "${from[@]}" || true
  if [[ ${code} != [03] ]]; then
    case ${codes[7]} in
      [03]) outcome='the backup was stored, but not all that follows was done' ;;
      1 | 1??) outcome='it may have been stored: bk-push list shows it' ;; # it commits even if its reader has died
      *) ;;
    esac
    printf 'backup.sh: error: %s ended with %s; %s\n' "${step}" "${code}" "${outcome}" >&2
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
