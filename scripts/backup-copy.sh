# shellcheck shell=bash disable=SC2154,SC2034,SC2312
# What backup.sh does for the second destination. It is sourced, and works with main's variables: code, step, copied.

# Copies the new backup to BACKUP_COPY_DESTINATION_PATH, if that is set. The first destination has it whatever happens
# here, so a failure is said and makes `code` 3. Sets `copied`, for the last line.
make_copy() {
  local there=${BACKUP_COPY_DESTINATION_PATH:-} before=${code} item prune=(cat) outcome='was not made'
  local names=('bk-push copy' bk-verify bk-prune) codes=(0)
  [[ -n ${there} ]] || return 0
  start_services || true # before what may take hours; `finish` tries again, and tells
  for item in "${!BACKUP_COPY_KEEP_@}" "${!BACKUP_COPY_RETENTION_@}"; do [[ -z ${!item} ]] || prune=(prune_copies); done
  bk-push copy --from "${BACKUP_DESTINATION_PATH}" --to "${there}" --to-access BACKUP_COPY <"${work}/run.json" \
    | bk-verify --from "${there}" --access BACKUP_COPY \
    | "${prune[@]}" >"${work}/copy.json" 2>"${work}/prune.log" || codes=("${PIPESTATUS[@]}")
  sed '/^bk-prune: kept /d' "${work}/prune.log" >&2
  judge
  copied="; copied to ${there}$(sed -n 's/^bk-prune: kept/, kept/p' "${work}/prune.log" || true)"
  if [[ ${code} != [03] ]]; then
    [[ ${codes[0]} != [03] ]] || outcome='was made, but not all that follows was done'
    printf 'backup.sh: error: the copy at %s %s: %s ended with %s\n' "${there}" "${outcome}" "${step}" "${code}" >&2
    code=3 copied="; the copy at ${there} ${outcome}"
  fi
  [[ ${before} == 0 ]] || code=${before}
}

# Copies the newest backup after a run that failed behind it: the end of its pipe was cut, so the manifest is asked for
# again. How the run ends stays as it is.
copy_latest() {
  local code=0 step copied=''
  [[ -n ${BACKUP_COPY_DESTINATION_PATH:-} ]] || return 0
  bk-push manifest latest --from "${BACKUP_DESTINATION_PATH}" >"${work}/run.json" || return 0
  make_copy
  printf 'backup.sh: the backup was stored%s\n' "${copied}" >&2
}

# Prunes the second destination by the rules for it. It runs as a part of a pipe: what it exports ends with it.
prune_copies() {
  local item
  unset "${!BACKUP_KEEP_@}" "${!BACKUP_RETENTION_@}"
  for item in "${!BACKUP_COPY_KEEP_@}" "${!BACKUP_COPY_RETENTION_@}"; do
    export "BACKUP_${item#BACKUP_COPY_}=${!item}"
  done
  bk-prune --from "${BACKUP_COPY_DESTINATION_PATH}" --access BACKUP_COPY
}
