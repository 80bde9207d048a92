# shellcheck shell=bash disable=SC2154,SC2034
# How restore.sh puts the application's buckets back. It is sourced, and works with the variables of main and `plan`:
# given, place, kind.

buckets=() strangers=()

# Sets `place` to where a bucket of the backup goes; `kind` to nothing if nowhere. $1: its name there
plan_bucket() {
  local item list stays=stays
  [[ -z ${given["--delete-strangers"]} ]] || stays='is removed' strangers=(--delete-strangers)
  [[ -z ${BACKUP_BUCKET_SKIP:-} ]] || { kind='' place='not restored: BACKUP_BUCKET_SKIP says why' && return 0; }
  read -ra list <<<"${BACKUP_BUCKET}"
  for item in "${list[@]}"; do
    [[ ${item%%=*} == "$1" ]] || continue
    buckets+=("${item}")
    place="into ${item#*=}; what differs is overwritten, what the backup lacks ${stays}"
    return 0
  done
  fail "BACKUP_BUCKET says not where '$1' (bucket) goes: it needs $1=s3://BUCKET"
}

# Mirrors a bucket back. $1: NAME=s3://BUCKET; the rest: more arguments
fetch_bucket() {
  bk-push fetch "${place[@]}" --component "${1%%=*}" --bucket "${1#*=}" --bucket-access BACKUP_BUCKET --into "${strangers[@]}" "${@:2}" \
    <"${work}/manifest" >"${work}/bucket"
}

# Finds out whether the buckets are there and can be listed, and may lose what the backup lacks; changes nothing.
check_buckets() {
  local item
  for item in "${buckets[@]}"; do fetch_bucket "${item}" --dry-run; done
}

# Puts them back.
put_back_buckets() {
  local item
  for item in "${buckets[@]}"; do
    half=${half/was put aside;/was put aside, but not what was in a bucket;}
    replace fetch_bucket "${item}" || lose $?
  done
}
