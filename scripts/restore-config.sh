# shellcheck shell=bash disable=SC2154,SC2034
# How restore.sh puts configuration back. It is sourced, and works with the variables of main: given.

root=.

# Sets `root`: names in BACKUP_CONFIG_FILES are relative to the env file's folder, or absolute.
choose_root() {
  root=/
  [[ ${BACKUP_CONFIG_FILES:-} == /* ]] || root=$(realpath -ms -- "${given["--env-file"]:-x}/..")
}

# Fails if a folder stands where no folder is to be put: tar does not put one aside, but stops. $1: the name
refuse_folder() {
  [[ -d ${root}/$1 && ! -L ${root}/$1 ]] && [[ ! -d ${beside}/config/$1 || -L ${beside}/config/$1 ]] || return 0
  fail "'${root%/}/$1' is a folder, and none in the backup: move it away"
}

# Lists in `members` what of the unpacked archive is to be put in place.
list_members() {
  local file env=${given["--env-file"]}
  while IFS= read -r -d '' file; do
    # Whatever name it has there, or here. And a folder that is there is left out: tar would close it to others
    # until it has finished; but below / links to folders are the host's own, and stay.
    [[ -z ${env} || -n ${given["--force-config"]} || ! ${root}/${file} -ef ${env} ]] || continue
    [[ -L ${beside}/config/${file} || ! -d ${beside}/config/${file} || ! -d ${root}/${file} ]] \
      || [[ -L ${root}/${file} && ${root} != / ]] || continue
    refuse_folder "${file}"
    printf './%s\0' "${file}"
  done < <(find "${beside}/config" -mindepth 1 -printf '%P\0' || true) >"${work}/members"
}

# Unpacks the archive beside, and finds out whether it can be put in place; replaces nothing.
unpack_config() {
  bk-dump restore --from "${beside}" --into "${beside}/config" <"${work}/dumps" >"${work}/restored"
  list_members
}

# Puts it in place; what is replaced is put aside.
place_config() {
  list_members # once more: the files that are back may have made folders
  # The older formats know of no time below a second.
  tar -C "${beside}/config" --format=posix --no-recursion --null -T "${work}/members" -cf "${beside}/config.tar"
  make_folder 700 "${root}"
  state=${half}
  tar -C "${root}" -xvpf "${beside}/config.tar" --no-overwrite-dir --backup=simple \
    --suffix=".before-$(date -u +%Y%m%dT%H%M%S.%3NZ || true)" >"${work}/unpacked"
}
