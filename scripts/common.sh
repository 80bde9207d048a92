# shellcheck shell=bash
# What backup.sh and restore.sh share: settings, the services to stop, the ways out. It is sourced.
# shellcheck disable=SC2034 # what is set here is used there
set -Eeuo pipefail
shopt -s inherit_errexit
export LC_ALL=C
umask 077

self=${0##*/} work='' beside='' stopped=() compose=(docker compose) lock='' state='' before_end=:

# Ends with 2: nothing was touched. $1: why.
fail() {
  printf '%s: error: %s\n' "${self}" "$1" >&2
  exit 2
}

# Exports the known settings and makes the temporary folder. Arguments: those of bk-manifest settings.
begin() {
  local settings=()
  PATH=${BK_BIN_DIR:+${BK_BIN_DIR}:}${PATH}
  trap finish EXIT
  trap 'exit 129' HUP
  trap 'exit 130' INT
  trap 'exit 143' TERM
  command -v bk-manifest >/dev/null || fail 'bk-manifest is not on PATH; BK_BIN_DIR can name its folder'
  # shellcheck disable=SC2312 # the next line sees it
  mapfile -d '' -t settings < <(bk-manifest settings "$@")
  wait "$!"
  export -- "${settings[@]}"
  work=$(mktemp -d)
}

# Lets no other run for this application begin on this host until this one and its steps have ended: a backup during
# a restore would store half of it. Without a home there is no lock. $1: -x; nothing: other backups may
hold_lock() {
  local folder key code=0
  folder=${XDG_STATE_HOME:-$(unset HOME && echo ~)/.local/state}/bk/locks # whatever HOME is under cron or sudo
  key=$(printf '%s\n' "${BACKUP_POSTGRES:-}" "${BACKUP_SQLITE:-}" "${BACKUP_ROOT:-}" "${COMPOSE_FILE:-}" \
    "${COMPOSE_PROJECT_NAME:-}" | sha256sum)
  { mkdir -p -- "${folder}" && exec {lock}>>"${folder}/${BACKUP_APP:-}-${key:0:16}"; } 2>/dev/null || return 0
  flock "${1:--s}" -n "${lock}" || code=$?
  [[ ${code} == 1 ]] || return 0
  printf '%s: error: another backup or restore of %s is busy; wait for it\n' "${self}" "${BACKUP_APP}" >&2
  exit 11
}

# Makes a folder that is missing, and says so. $1: its mode, $2: its name
make_folder() {
  [[ ! -d $2 ]] || return 0
  install -d -m "$1" -- "$2" && printf 'made         %s, with mode %s\n' "$2" "$1"
}

# Stops BACKUP_STOP_SERVICES, if there are any, by the Compose that bk-dump takes; `finish` starts them again.
stop_services() {
  local service services=() container
  read -ra services <<<"${BACKUP_STOP_SERVICES:-}"
  ((${#services[@]})) || return 0
  docker compose version >/dev/null 2>&1 || compose=(docker-compose)
  for service in "${services[@]}"; do # before: a stop that fails may have stopped some
    # One that has no container, as on a bare host, cannot be started.
    container=$("${compose[@]}" ps -aq "${service}" 2>/dev/null) && [[ -z ${container} ]] || stopped+=("${service}")
  done
  ! "${compose[@]}" stop "${services[@]}" >"${work}/compose.log" 2>&1 || return 0
  cat -- "${work}/compose.log" >&2
  printf '%s: error: cannot stop %s\n' "${self}" "${services[*]}" >&2
  exit 1
}

# Starts again what was stopped; what does not start stays in `stopped`.
start_services() {
  ((${#stopped[@]})) || return 0
  ! "${compose[@]}" start "${stopped[@]}" >"${work}/compose.log" 2>&1 || { stopped=() && return 0; }
  cat -- "${work}/compose.log" >&2
  printf '%s: error: could not start again: %s\n' "${self}" "${stopped[*]}" >&2
  return 1
}

# On every way out: services start again, the temporary folder goes, a failure is said.
finish() {
  local code=$?
  trap '' HUP INT TERM
  # shellcheck disable=SC2310 # nothing in it ends the script
  start_services || [[ ${code} != [03] ]] || code=1
  [[ ! ${code}:${state} =~ ^(2:THE|3:THE|3:nothing) ]] || code=1 # 2 would say: nothing was touched; 3: it is done
  "${before_end}" >&2 || true
  [[ -z ${lock} ]] || flock -u "${lock}" || true # a process that is about to end may share it
  [[ -z ${work}${beside} ]] || rm -rf -- ${work:+"${work}"} ${beside:+"${beside}"}
  if [[ ${code} != [03] ]]; then
    printf '%s: failed with exit code %s\n' "${self}" "${code}" >&2
    [[ -z ${state} ]] || printf '%s: %s\n' "${self}" "${state}" >&2
  fi
  exit "${code}"
}
