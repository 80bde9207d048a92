#!/usr/bin/env bash
# Backs up one application (databases, configuration, files) through one pipe of the bk tools.
#
# usage: backup.sh [--env-file FILE] [--full] [DEST]
#   --env-file FILE   settings, as in scripts/env.example; the environment beats them
#   --full            store everything again, whatever earlier backups hold
#   DEST              where to, instead of BACKUP_DESTINATION_PATH
# BK_BIN_DIR names the folder of the tools where they are not on PATH.
# exit codes: 0 done; 3 done, but what is listed was left out; else that of the first step with a
# reason of its own to fail (table in README.md)
here=$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}" || true)")
# shellcheck source=scripts/common.sh
source "${here}/common.sh"

names=('bk-manifest new' 'bk-dump postgres' 'bk-dump sqlite' 'bk-dump archive' 'bk-manifest add' bk-push bk-verify bk-prune)
postgres=(cat) sqlite=(cat) archive=(cat) add=(cat) prune=(cat)

# Fills the steps that the settings ask for. $1: the folder that names in them are relative to.
choose_steps() {
  local item list=() postgresql=${BACKUP_POSTGRES:-}
  if [[ ${BACKUP_INCLUDE_DATABASE:-true} == true ]]; then
    [[ ${postgresql} != *:*/* ]] || postgres=(bk-dump postgres --via "${postgresql%%/*}" --database "${postgresql#*/}")
    [[ ${postgresql} != url:* ]] || postgres=(bk-dump postgres --url-env "${postgresql#url:}")
    [[ -z ${BACKUP_SQLITE:-} ]] || sqlite=(bk-dump sqlite --name "${postgresql:+sqlite-}database" -- "${BACKUP_SQLITE}")
  fi
  if [[ -n ${BACKUP_CONFIG_FILES:-} ]]; then
    IFS=: read -ra list <<<"${BACKUP_CONFIG_FILES}"
    [[ ${list[0]} == /* ]] || list=(--root "$1" -- "${list[@]}")
    archive=(bk-dump archive --name config "${list[@]}")
  fi
  if [[ -n ${BACKUP_ROOT:-} ]]; then
    IFS=: read -ra list <<<"${BACKUP_EXCLUDE:-}"
    [[ ${BACKUP_INCLUDE_ARCHIVED:-true} == true ]] || list+=(/events/archived)
    if [[ -n ${BACKUP_SQLITE:-} ]]; then # a database in use is no file to copy: it is dumped
      item=$(realpath -m --relative-base="${BACKUP_ROOT}" -- "${BACKUP_SQLITE}" | sed 's/[][\\*?{}]/\\&/g')
      [[ ${item} == /* ]] || list+=("/${item}" "/${item}-wal" "/${item}-shm" "/${item}-journal")
    fi
    add=(bk-manifest add --root "${BACKUP_ROOT}" "${list[@]/#/--exclude=}")
    [[ -z ${BACKUP_MAX_FILE_SIZE_MB:-} ]] || add+=(--max-file-size "${BACKUP_MAX_FILE_SIZE_MB}M")
    IFS=: read -ra list <<<"${BACKUP_TREES:-}" && add+=(-- "${list[@]}")
  fi
  for item in "${!BACKUP_KEEP_@}" "${!BACKUP_RETENTION_@}"; do
    [[ -z ${!item} ]] || prune=(bk-prune --from "${BACKUP_DESTINATION_PATH}")
  done
}

# Sets `code` and `step` from the `codes` of the pipe. A step that got a cut document ends with 21, one
# whose reader has gone with 1 (cat: 141): both give way to another step's own reason.
judge() {
  local index
  code=0
  for index in "${!codes[@]}"; do
    case ${code}:${codes[index]} in
      *:0 | 1:21 | [1-9]*:3) ;;
      [013]:* | 141:*) code=${codes[index]} step=${names[index]} ;;
      *) ;;
    esac
  done
}

main() {
  local base=. from=() full=() codes=(0) code step facts=() word=ok outcome='no backup was made'
  while (($#)); do
    case $1 in
      --env-file) from=("${@:1:2}") base=$(dirname -- "${2:-.}") && shift "$(($# > 1))" ;;
      --full) full=(--full) ;;
      -h | --help) sed -n '2,/^# reason/s/^# \{0,1\}//p' "$0" && exit 0 ;;
      -*) fail "unknown option '$1', see --help" ;;
      *) export BACKUP_DESTINATION_PATH=$1 ;;
    esac
    shift
  done
  begin "${from[@]}" --require BACKUP_APP --require BACKUP_DESTINATION_PATH
  [[ ${BACKUP_ENABLED:-true} == true ]] || { echo 'backup.sh: nothing done: BACKUP_ENABLED is false' && exit 0; }
  [[ ${BACKUP_INCREMENTAL:-true} == true ]] || full=(--full)
  choose_steps "${base}"
  [[ ${postgres[0]}${sqlite[0]}${archive[0]}${add[0]} != catcatcatcat ]] || fail 'no setting says what to back up'
  bk-push manifest latest --from "${BACKUP_DESTINATION_PATH}" --or-none >"${work}/parent.json"
  stop_services
  bk-manifest new --parent "${work}/parent.json" | "${postgres[@]}" | "${sqlite[@]}" | "${archive[@]}" \
    | "${add[@]}" | bk-push --to "${BACKUP_DESTINATION_PATH}" "${full[@]}" \
    | bk-verify --from "${BACKUP_DESTINATION_PATH}" \
    | "${prune[@]}" >"${work}/run.json" 2>"${work}/prune.log" || codes=("${PIPESTATUS[@]}")
  sed '/^bk-prune: kept /d' "${work}/prune.log" >&2
  judge
  if [[ ${code} != [03] ]]; then
    [[ ${codes[5]} != [03] ]] || outcome='the backup was stored, but not all that follows was done'
    printf 'backup.sh: error: %s ended with %s; %s\n' "${step}" "${code}" "${outcome}" >&2
    exit "${code}"
  fi
  [[ ${code} == 0 ]] || word='done with warnings'
  # shellcheck disable=SC2312 # a failure shows: the facts are missing
  mapfile -t facts < <(bk-manifest show "${work}/run.json" | sed -n 's/^\(backup\|entries\|objects\) *//p')
  facts[2]=${facts[2]#*, }
  printf 'backup.sh: %s %s: %s; stored %s%s\n' "${word}" "${facts[0]}" "${facts[1]}" \
    "${facts[2]%%;*}" "$(sed -n 's/^bk-prune: kept/; kept/p' "${work}/prune.log" || true)"
  exit "${code}"
}

main "$@"
