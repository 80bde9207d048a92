# shellcheck shell=bash disable=SC2154
# The folder that restore.sh fetches dumps and archives into before it replaces anything. It is sourced, and works
# with the variables of main: app, kinds, dumps, place.

stage=''

# Sets `stage` to where that folder is made, and says it; fails if nothing can be made there.
choose_stage() {
  local above
  [[ ${kinds} =~ sql|archive ]] || return 0
  stage=$(realpath -ms -- "${BK_STAGE:-${BACKUP_ROOT:-${BACKUP_SQLITE:-./bk}}/..}")
  above=${stage}
  until [[ -e ${above} || -L ${above} ]]; do above=$(dirname -- "${above}"); done
  [[ -d ${above} && -w ${above} && -x ${above} ]] || fail "${no_stage} '${above}'; ${other_stage}"
  printf 'plan         dumps, archives  first into a folder in %s\n' "${stage}"
}

no_stage='dumps and archives cannot be fetched into' other_stage='BK_STAGE can name another folder'

# Fetches them there. $1: the folder; the rest: more arguments
fetch_into() {
  local code=0
  bk-push fetch "${place[@]}" --target "$1" "${dumps[@]}" "${@:2}" <"${work}/manifest" >"${work}/dumps" || code=$?
  [[ ${code} != 3 ]] || fail_damaged
  [[ ${code} != 1 ]] || printf '%s: hint: if %s is too small, %s\n' "${self}" "${stage}" "${other_stage}" >&2
  return "${code}"
}

# A database cannot be restored without its dump.
fail_damaged() {
  printf '%s: error: what is lost is needed; --target DIR fetches the rest, or restore another backup\n' "${self}" >&2
  exit 20
}

# Finds out whether they can be fetched; makes nothing.
check_stage() {
  [[ -z ${stage} ]] || fetch_into "${stage%/}/.bk-restore-${app}.new" --dry-run
}

# Fetches dumps and archives into a new folder, `beside`, which `finish` removes.
fetch_dumps() {
  local old held mode=755
  [[ -z ${BK_STAGE:-} ]] || mode=700 # else it is the application's
  make_folder "${mode}" "${stage}" || fail "${no_stage} '${stage}'; ${other_stage}"
  for old in "${stage%/}/.bk-restore-${app}".*; do
    # One that a restore left when it was killed: a living one, or a step that outlived it, holds its folder.
    [[ ${old#"${stage%/}/.bk-restore-${app}."} =~ ^[[:alnum:]]{10}$ && -d ${old} && ! -L ${old} && -O ${old} ]] || continue
    ! flock -n -- "${old}" rm -rf -- "${old}" || printf 'removed      %s, which a killed restore left\n' "${old}"
  done
  beside=$(mktemp -d -- "${stage%/}/.bk-restore-${app}.XXXXXXXXXX") || fail "${no_stage} '${stage}'; ${other_stage}"
  { exec {held}<"${beside}" && flock -n "${held}"; } 2>/dev/null || true # where there are no locks nothing is swept
  fetch_into "${beside}"
}
