# shellcheck shell=bash disable=SC2034,SC2154
# The steps of backup.sh's pipe, and how its end is judged. It is sourced, and works with main's variables: codes,
# code, step.

names=('bk-manifest new' 'bk-dump postgres' 'bk-dump globals' 'bk-dump sqlite' 'bk-dump archive' 'bk-manifest add' 'bk-push add' bk-push bk-verify bk-prune)
postgres=(cat) globals=(cat) sqlite=(cat) archive=(cat) add=(cat) buckets=(cat) prune=(cat)

# Fills the steps that dump databases.
choose_dumps() {
  local server=() database=() flags=() postgresql=${BACKUP_POSTGRES:-}
  case ${postgresql} in
    '') ;;
    url:*) server=(--url-env "${postgresql#url:}") ;;
    *) server=(--via "${postgresql%%/*}") database=(--database "${postgresql#*/}") ;;
  esac
  if [[ -n ${postgresql} ]]; then
    read -ra flags <<<"${BACKUP_POSTGRES_FLAGS:-}"
    postgres=(bk-dump postgres "${server[@]}" "${database[@]}" "${flags[@]}")
    # Whom a URL names may seldom read passwords; the user of a container is a superuser.
    case ${BACKUP_GLOBALS:-${postgresql%%:*}} in
      true | docker | compose) globals=(bk-dump globals "${server[@]}") ;;
      without-passwords | url | ssh) globals=(bk-dump globals "${server[@]}" --no-role-passwords) ;;
      *) ;;
    esac
  fi
  if [[ -n ${BACKUP_SQLITE:-} ]]; then
    read -ra flags <<<"${BACKUP_SQLITE_FLAGS:-}"
    sqlite=(bk-dump sqlite --name "${postgresql:+sqlite-}database" "${flags[@]}" -- "${BACKUP_SQLITE}")
  fi
}

# Fills the steps that the settings ask for. $1: the folder that names in them are relative to.
choose_steps() {
  local item list=()
  [[ ${BACKUP_INCLUDE_DATABASE:-true} != true ]] || choose_dumps
  if [[ -n ${BACKUP_CONFIG_FILES:-} ]]; then
    IFS=: read -ra list <<<"${BACKUP_CONFIG_FILES}"
    [[ ${list[0]} == /* ]] || list=(--root "$1" -- "${list[@]}")
    archive=(bk-dump archive --name config "${list[@]}")
  fi
  if [[ -n ${BACKUP_ROOT:-} ]]; then
    IFS=: read -ra list <<<"${BACKUP_EXCLUDE:-}"
    [[ ${BACKUP_INCLUDE_ARCHIVED:-true} == true ]] || list+=(/events/archived)
    if [[ -n ${BACKUP_SQLITE:-} ]]; then # a database in use is dumped, and no file to copy
      item=$(realpath -m --relative-base="${BACKUP_ROOT}" -- "${BACKUP_SQLITE}")
      # shellcheck disable=SC2001 # before bash 5.2 nothing else can repeat what it found
      item=$(sed 's/[][\\*?{}]/\\&/g' <<<"${item}")
      [[ ${item} == /* ]] || list+=("/${item}" "/${item}-wal" "/${item}-shm" "/${item}-journal" "/${item}.before-????????-??????*")
    fi
    add=(bk-manifest add --root "${BACKUP_ROOT}" "${list[@]/#/--exclude=}")
    [[ -z ${BACKUP_MAX_FILE_SIZE_MB:-} ]] || add+=(--max-file-size "${BACKUP_MAX_FILE_SIZE_MB}M")
    IFS=: read -ra list <<<"${BACKUP_TREES:-}" && add+=(-- "${list[@]}")
  fi
  read -ra list <<<"${BACKUP_BUCKET:-}"
  ((${#list[@]} == 0)) || buckets=(add_buckets "${list[@]}")
  for item in "${!BACKUP_KEEP_@}" "${!BACKUP_RETENTION_@}"; do
    [[ -z ${!item} ]] || prune=(bk-prune --from "${BACKUP_DESTINATION_PATH}")
  done
}

# Adds the application's buckets, each NAME=s3://BUCKET, by a pipe of its own. It runs as a part of a pipe, and ends with it.
add_buckets() {
  (($#)) || exec cat
  local name=${1%%=*} how=(--access BACKUP_BUCKET)
  [[ -z ${BACKUP_BUCKET_SKIP:-} ]] || how=(--skip "${BACKUP_BUCKET_SKIP}")
  # shellcheck disable=SC2312 # judge sees it
  bk-push add --bucket "${1#*=}" --as "${name}" "${how[@]}" | add_buckets "${@:2}" || codes=("${PIPESTATUS[@]}")
  judge
  exit "${code}"
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
