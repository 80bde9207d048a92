#!/usr/bin/env bats
# The order of backup.sh, and its exit codes, with fake tools.
# shellcheck disable=SC2154,SC2312 # set by bats and `run`; a test fails by what it asserts
# shellcheck disable=SC2016,SC2164 # for the fakes to expand; bats stops at a failure

load common

setup() {
  fake_tools
  backup=${BATS_TEST_DIRNAME}/../../scripts/backup.sh
  cat >"${FAKE}/settings" <<END
BACKUP_APP=app
BACKUP_ENABLED=true
BACKUP_INCLUDE_DATABASE=true
BACKUP_INCLUDE_ARCHIVED=true
BACKUP_INCREMENTAL=true
BACKUP_DESTINATION_PATH=/dest
BACKUP_POSTGRES=compose:db/app
BACKUP_SQLITE=/srv/app/files/app.db
BACKUP_CONFIG_FILES=.env:secrets
BACKUP_ROOT=/srv/app/files
BACKUP_TREES=events:two words
BACKUP_EXCLUDE=*.tmp
BACKUP_KEEP_LAST=3
END
  cat >"${FAKE}/show" <<END
backup       backup-20260428-022150-a1b2c3d4 (incremental)
application  app
entries      12 files, 3.4 MiB
objects      2 in this backup, 1.0 MiB; 1 in 1 earlier, 2.2 MiB
             2 files one by one in minio/, 200.0 KiB
stored       1.2 MiB by this run, 4 objects
END
}

# Steps of the pipe by the names of their fakes, in order.
steps=(bk-manifest-new bk-dump-postgres bk-dump-globals bk-dump-sqlite bk-dump-archive bk-manifest-add bk-push bk-verify bk-prune)

@test "a run is one line, and the steps are in order" {
  run --separate-stderr -0 "${backup}"
  [[ ${output} == 'backup.sh: ok backup-20260428-022150-a1b2c3d4 (incremental): 12 files, 3.4 MiB; stored 1.2 MiB; kept 3, marked 0, removed 1, freed 2 KiB' ]]
  [[ -z ${stderr} ]]
  # The steps of the pipe start at once, so only what is around it has an order.
  [[ $(calls | sed -n '1,2p;$p' | paste -sd,) == 'bk-manifest settings,bk-push manifest,bk-manifest show' ]]
  run -0 sed 's/ -.*//' "${FAKE}/calls"
  [[ $(calls | sort | paste -sd,) == 'bk-dump archive,bk-dump globals,bk-dump postgres,bk-dump sqlite,bk-manifest add,bk-manifest new,bk-manifest settings,bk-manifest show,bk-prune --from,bk-push --to,bk-push manifest,bk-verify --from' ]]
}

@test "the settings reach the steps" {
  run -0 "${backup}" --env-file /srv/app/app.env
  run -0 cat "${FAKE}/calls"
  [[ ${output} == *'bk-manifest settings --env-file /srv/app/app.env --require BACKUP_APP --require BACKUP_DESTINATION_PATH'* ]]
  [[ ${output} == *'bk-push manifest latest --from /dest --or-none'* ]]
  [[ ${output} == *'bk-dump postgres --via compose:db --database app'* ]]
  [[ ${output} == *'bk-dump globals --via compose:db'* && ${output} != *'bk-dump globals --via compose:db '* ]]
  [[ ${output} == *'bk-dump sqlite --name sqlite-database -- /srv/app/files/app.db'* ]]
  [[ ${output} == *'bk-dump archive --name config --root /srv/app -- .env secrets'* ]]
  [[ ${output} == *'bk-manifest add --root /srv/app/files --exclude=*.tmp --exclude=/app.db --exclude=/app.db-wal --exclude=/app.db-shm --exclude=/app.db-journal --exclude=/app.db.before-????????-??????* -- events two words'* ]]
  [[ ${output} == *'bk-push --to /dest'* ]]
  [[ ${output} != *'--full'* ]]
}

@test "a database by URL, larger files, no archived events, no increments" {
  {
    sed '/POSTGRES\|SQLITE\|INCLUDE_ARCHIVED\|INCREMENTAL\|EXCLUDE/d' "${FAKE}/settings"
    printf 'BACKUP_POSTGRES=url:APP_URL\nBACKUP_INCLUDE_ARCHIVED=false\nBACKUP_MAX_FILE_SIZE_MB=50\nBACKUP_INCREMENTAL=false\n'
  } >"${FAKE}/more"
  mv "${FAKE}/more" "${FAKE}/settings"
  run -0 "${backup}"
  run -0 cat "${FAKE}/calls"
  [[ ${output} == *'bk-dump postgres --url-env APP_URL'* ]]
  [[ ${output} == *'bk-dump globals --url-env APP_URL --no-role-passwords'* ]]
  [[ ${output} != *'bk-dump sqlite'* ]]
  [[ ${output} == *'--exclude=/events/archived --max-file-size 50M'* ]]
  [[ ${output} == *'bk-push --to /dest --full'* ]]
}

@test "flags for dumps, and globals" {
  printf 'BACKUP_POSTGRES_FLAGS=--format directory --no-owner\nBACKUP_SQLITE_FLAGS=--busy-timeout 300\nBACKUP_GLOBALS=without-passwords\n' >>"${FAKE}/settings"
  sed -i 's/^BACKUP_POSTGRES=.*/BACKUP_POSTGRES=ssh:me@far\/app/' "${FAKE}/settings"
  run -0 "${backup}"
  run -0 cat "${FAKE}/calls"
  [[ ${output} == *'bk-dump postgres --via ssh:me@far --database app --format directory --no-owner'* ]]
  [[ ${output} == *'bk-dump globals --via ssh:me@far --no-role-passwords'* ]]
  [[ ${output} == *'bk-dump sqlite --name sqlite-database --busy-timeout 300 -- /srv/app/files/app.db'* ]]
  sed -i 's/without-passwords/false/' "${FAKE}/settings"
  run -0 "${backup}"
  [[ $(grep -c globals "${FAKE}/calls") == 1 ]]
}

@test "steps that no setting asks for are left out" {
  printf 'BACKUP_APP=app\nBACKUP_DESTINATION_PATH=/dest\nBACKUP_ROOT=/srv\n' >"${FAKE}/settings"
  run --separate-stderr -0 "${backup}"
  [[ ${output} == *'stored 1.2 MiB' ]]
  [[ $(calls | sort | paste -sd,) == 'bk-manifest add,bk-manifest new,bk-manifest settings,bk-manifest show,bk-push --to,bk-push manifest,bk-verify --from' ]]
}

@test "an empty retention setting is none" {
  sed -i '/KEEP_LAST/d' "${FAKE}/settings"
  BACKUP_RETENTION_DAILY='' run -0 "${backup}"
  run ! grep bk-prune "${FAKE}/calls"
}

@test "without databases none is dumped" {
  sed -i 's/INCLUDE_DATABASE=true/INCLUDE_DATABASE=false/' "${FAKE}/settings"
  run -0 "${backup}"
  run ! grep -E 'bk-dump (postgres|globals|sqlite)' "${FAKE}/calls"
}

@test "settings that say nothing to back up end with 2" {
  printf 'BACKUP_APP=app\nBACKUP_DESTINATION_PATH=/dest\n' >"${FAKE}/settings"
  run -2 "${backup}"
  [[ $(calls) == 'bk-manifest settings' ]]
}

@test "the code of each step that fails is the script's, not that of those who saw a cut document" {
  local step code
  for step in "${steps[@]}"; do
    for code in 1 2 10 11 12 13 20 21 22 130 137 143; do
      echo "${code}" >"${FAKE}/codes/${step}"
      run "${backup}"
      echo "${step} with ${code}: ${status}: ${output}"
      [[ ${status} == "${code}" && ${output} == *" ended with ${code}; "* ]]
    done
    rm "${FAKE}/codes/${step}"
  done
}

@test "a step that fails before it reads wins over those whose reader has gone" {
  local step code
  for step in bk-push bk-verify bk-prune; do
    for code in 2 10 11 22; do
      echo "early ${code}" >"${FAKE}/codes/${step}"
      # What the real tools end with when nobody reads their document.
      echo 1 | tee "${FAKE}/codes/bk-manifest-new" "${FAKE}/codes/bk-manifest-add" >/dev/null
      run "${backup}"
      echo "${step} with ${code}: ${status}: ${output}"
      [[ ${status} == "${code}" && ${output} == *"${step} ended with ${code}; "* ]]
    done
    rm "${FAKE}/codes/"*
  done
}

@test "3 is done with warnings, whichever step says so" {
  local step
  for step in "${steps[@]}"; do
    echo 3 >"${FAKE}/codes/${step}"
    run --separate-stderr -3 "${backup}"
    [[ ${output} == 'backup.sh: done with warnings backup-'* ]]
    [[ -z ${stderr} ]]
    rm "${FAKE}/codes/${step}"
  done
}

@test "a failure after a 3 is a failure" {
  echo 3 >"${FAKE}/codes/bk-manifest-add"
  echo 20 >"${FAKE}/codes/bk-verify"
  run -20 "${backup}"
  [[ ${output} == *'bk-verify ended with 20; the backup was stored, but not all that follows was done'* ]]
}

# A push that stores the first backup, and then ends with CODE.
push_that_stores() {
  touch "${FAKE}/first"
  mv "${FAKE}/bin/bk-push" "${FAKE}/bk-push"
  printf '#!/bin/bash\n[[ $1 != --to ]] || { cat >/dev/null && rm -f "${FAKE}/first" && exit "${CODE}"; }\nexec "${FAKE}/bk-push" "$@"\n' >"${FAKE}/bin/bk-push"
  chmod +x "${FAKE}/bin/bk-push"
}

@test "a push that fails is said to have stored a backup if it has" {
  push_that_stores
  local code
  for code in 1 143; do
    touch "${FAKE}/first"
    CODE=${code} run --separate-stderr "${backup}"
    [[ ${stderr} == *"bk-push ended with ${code}; the backup was stored, but not all that follows was done"* ]]
  done
  for code in 1 12; do
    CODE=${code} run --separate-stderr "${backup}"
    [[ ${stderr} == *"bk-push ended with ${code}; no backup was made"* ]]
  done
}

@test "a push that fails where nobody can look any more may have stored a backup" {
  echo 1 >"${FAKE}/codes/bk-push"
  mv "${FAKE}/bin/bk-push" "${FAKE}/bk-push"
  printf '#!/bin/bash\n[[ $1 != --to ]] || echo 10 >"${FAKE}/codes/bk-push-manifest"\nexec "${FAKE}/bk-push" "$@"\n' >"${FAKE}/bin/bk-push"
  chmod +x "${FAKE}/bin/bk-push"
  run --separate-stderr -1 "${backup}"
  [[ ${stderr} == *'bk-push ended with 1; it may have been stored: bk-push list shows it'* ]]
}

@test "the first backup prints the recovery sheet, whatever fails behind its commit" {
  touch "${FAKE}/first"
  echo 20 >"${FAKE}/codes/bk-verify"
  run --separate-stderr -20 "${backup}"
  [[ ${output} == '# RECOVERY SHEET' ]]
  rm "${FAKE}/codes/bk-verify"
  echo 1 >"${FAKE}/codes/bk-push"
  run --separate-stderr -1 "${backup}"
  [[ -z ${output} ]]
  rm "${FAKE}/codes/bk-push"
  push_that_stores
  CODE=1 run --separate-stderr -1 "${backup}"
  [[ ${output} == '# RECOVERY SHEET' ]]
  CODE=1 run --separate-stderr -1 "${backup}"
  [[ -z ${output} ]]
}

@test "malformed settings end with 2 before anything" {
  echo 2 >"${FAKE}/codes/bk-manifest-settings"
  run -2 "${backup}"
  [[ $(calls) == 'bk-manifest settings' ]]
}

@test "unknown options and a missing value end with 2 before anything" {
  run -2 "${backup}" --nonsense
  [[ ! -s ${FAKE}/calls ]]
  echo 2 >"${FAKE}/codes/bk-manifest-settings"
  run -2 "${backup}" --env-file
}

@test "a pause is said, and is no failure" {
  sed -i 's/ENABLED=true/ENABLED=false/' "${FAKE}/settings"
  run -0 "${backup}"
  [[ ${output} == 'backup.sh: nothing done: BACKUP_ENABLED is false' ]]
  [[ $(calls) == 'bk-manifest settings' ]]
}

@test "the first argument redirects the destination" {
  sed -i '/DESTINATION_PATH/d' "${FAKE}/settings"
  run -0 "${backup}" /elsewhere
  grep 'bk-push --to /elsewhere' "${FAKE}/calls"
  grep 'bk-prune --from /elsewhere' "${FAKE}/calls"
  # Whatever kind the environment says.
  printf '#!/bin/bash\n[[ -z ${BACKUP_DESTINATION_TYPE+x} ]] || exit 2\nprintf "BACKUP_APP=app\\0BACKUP_ROOT=/srv\\0"\n' >"${FAKE}/bin/bk-manifest"
  BACKUP_DESTINATION_TYPE=s3 run "${backup}" /elsewhere
  [[ ${status} != 2 ]]
}

@test "services stop only when the destination is there, and start again at the end" {
  echo 'BACKUP_STOP_SERVICES=api worker' >>"${FAKE}/settings"
  echo 10 >"${FAKE}/codes/bk-push-manifest"
  run -10 "${backup}"
  run ! grep docker "${FAKE}/calls"
  rm "${FAKE}/codes/bk-push-manifest"
  : >"${FAKE}/calls"
  run -0 "${backup}"
  [[ $(sed -n '3p;$p' "${FAKE}/calls" | paste -sd,) == 'docker compose stop api worker,docker compose start api worker' ]]
}

@test "services start again after every failure" {
  echo 'BACKUP_STOP_SERVICES=api' >>"${FAKE}/settings"
  local step
  for step in "${steps[@]}"; do
    : >"${FAKE}/calls"
    echo 1 >"${FAKE}/codes/${step}"
    run -1 "${backup}"
    [[ $(tail -n 1 "${FAKE}/calls") == 'docker compose start api' ]]
    rm "${FAKE}/codes/${step}"
  done
}

@test "one run at a time: a second one touches nothing, and starts no services" {
  echo 'BACKUP_STOP_SERVICES=api' >>"${FAKE}/settings"
  printf '#!/bin/bash\ntouch "${FAKE}/busy"; sleep 2; cat\n' >"${FAKE}/bin/bk-verify"
  "${backup}" >/dev/null 2>&1 3>&- &
  until [[ -e ${FAKE}/busy ]]; do sleep 0.05; done
  : >"${FAKE}/calls"
  run --separate-stderr -11 "${backup}"
  [[ ${stderr} == *'another backup or restore of app is busy'* ]]
  [[ ${output}${stderr} != *locks* ]]
  run ! grep -E 'docker|push manifest' "${FAKE}/calls"
  # Another application of that name is elsewhere.
  sed -i 's|=/srv/app|=/srv/other|' "${FAKE}/settings"
  run -0 "${backup}"
  wait "$!"
  run -0 "${backup}"
}

@test "a user without a home can back up" {
  XDG_STATE_HOME=/dev/null run --separate-stderr -0 "${backup}"
  [[ -z ${stderr} ]]
}

@test "a stop that fails is undone, and nothing is backed up" {
  echo 'BACKUP_STOP_SERVICES=api' >>"${FAKE}/settings"
  printf '#!/bin/bash\n[[ $2 != ps ]] || exec echo 0123456789ab\necho "docker $*" >>"${FAKE}/calls"\n[[ $2 != stop ]]\n' >"${FAKE}/bin/docker"
  run -1 "${backup}"
  [[ $(tail -n 2 "${FAKE}/calls" | paste -sd,) == 'docker compose stop api,docker compose start api' ]]
}

@test "a service that has no container is not started" {
  echo 'BACKUP_STOP_SERVICES=api gone worker' >>"${FAKE}/settings"
  printf '#!/bin/bash\n[[ $* != *"ps -aq gone" ]] || exit 0\nexec "${FAKE}/real-docker" "$@"\n' >"${FAKE}/docker"
  mv "${FAKE}/bin/docker" "${FAKE}/real-docker"
  install -m 755 "${FAKE}/docker" "${FAKE}/bin/docker"
  sed -i 's/^tool=.*/tool=docker/' "${FAKE}/real-docker"
  run -0 "${backup}"
  [[ $(grep docker "${FAKE}/calls" | paste -sd,) == 'docker compose stop api gone worker,docker compose start api worker' ]]
  sed -i 's/^BACKUP_STOP_SERVICES=.*/BACKUP_STOP_SERVICES=gone/' "${FAKE}/settings"
  : >"${FAKE}/calls"
  run -0 "${backup}"
  [[ $(grep docker "${FAKE}/calls") == 'docker compose stop gone' ]]
}

@test "services are stopped by docker-compose where Docker has no plugin" {
  echo 'BACKUP_STOP_SERVICES=api' >>"${FAKE}/settings"
  mv "${FAKE}/bin/docker" "${FAKE}/bin/docker-compose"
  printf '#!/bin/bash\nexit 1\n' >"${FAKE}/bin/docker"
  chmod +x "${FAKE}/bin/docker"
  run -0 "${backup}"
  [[ $(grep docker "${FAKE}/calls" | paste -sd,) == 'docker-compose stop api,docker-compose start api' ]]
}

@test "services that do not start again are a failure" {
  echo 'BACKUP_STOP_SERVICES=api' >>"${FAKE}/settings"
  printf '#!/bin/bash\n[[ $2 != ps ]] || exec echo 0123456789ab\n[[ $2 != start ]] || { echo "no such service" >&2 && exit 1; }\n' >"${FAKE}/bin/docker"
  run -1 "${backup}"
  [[ ${output} == *'no such service'*'backup.sh: error: could not start again: api'* ]]
}

@test "services start again when the script is stopped" {
  echo 'BACKUP_STOP_SERVICES=api' >>"${FAKE}/settings"
  printf '#!/bin/bash\ntouch "${FAKE}/busy"; sleep 1; exit 1\n' >"${FAKE}/bin/bk-verify"
  setsid "${backup}" >/dev/null 2>&1 3>&- &
  local script=$!
  until [[ -e ${FAKE}/busy ]]; do sleep 0.05; done
  kill -TERM "${script}"
  local code=0
  wait "${script}" || code=$?
  [[ ${code} == 143 ]]
  [[ $(tail -n 1 "${FAKE}/calls") == 'docker compose start api' ]]
}

@test "no temporary folder is left" {
  export TMPDIR=${BATS_TEST_TMPDIR}/tmp
  mkdir "${TMPDIR}"
  run -0 "${backup}"
  echo 1 >"${FAKE}/codes/bk-push"
  run -1 "${backup}"
  [[ -z $(ls -A "${TMPDIR}") ]]
}

@test "tools that are not there are named" {
  PATH=/usr/bin:/bin run -2 "${backup}"
  [[ ${output} == *'bk-manifest is not on PATH; BK_BIN_DIR can name its folder'* ]]
}

@test "help says what the codes are" {
  run -0 "${backup}" --help
  [[ ${output} == *'usage: backup.sh [--env-file FILE] [--full] [DEST]'*'exit codes:'* ]]
}

@test "buckets are added behind all else, one behind the other" {
  echo 'BACKUP_BUCKET=minio=s3://documents other=s3://b/x=y' >>"${FAKE}/settings"
  run --separate-stderr -0 "${backup}"
  [[ -z ${stderr} ]]
  grep -Fx 'bk-push add --bucket s3://documents --as minio --access BACKUP_BUCKET' "${FAKE}/calls"
  grep -Fx 'bk-push add --bucket s3://b/x=y --as other --access BACKUP_BUCKET' "${FAKE}/calls"
  # An application may have nothing else.
  sed -i '/POSTGRES\|SQLITE\|CONFIG\|ROOT\|TREES/d' "${FAKE}/settings"
  run --separate-stderr -0 "${backup}"
}

@test "the code of a bucket that cannot be listed is the script's, whichever bucket it is" {
  echo 'BACKUP_BUCKET=a=s3://a b=s3://b c=s3://c' >>"${FAKE}/settings"
  mv "${FAKE}/bin/bk-push" "${FAKE}/bk-push"
  printf '#!/bin/bash\n[[ $* != *"${BROKEN}"* ]] || { cat >/dev/null && exit "${CODE}"; }\nexec "${FAKE}/bk-push" "$@"\n' >"${FAKE}/bin/bk-push"
  chmod +x "${FAKE}/bin/bk-push"
  local bucket code
  for bucket in a b c; do
    for code in 1 2 12 13 21 143; do
      BROKEN="--as ${bucket}" CODE=${code} run --separate-stderr "${backup}"
      echo "${bucket} with ${code}: ${status}: ${stderr}"
      [[ ${status} == "${code}" && ${stderr} == *"bk-push add ended with ${code}; no backup was made"* ]]
    done
  done
  echo 3 >"${FAKE}/codes/bk-push-add"
  BROKEN=nothing run --separate-stderr -3 "${backup}"
  [[ ${output} == 'backup.sh: done with warnings backup-'* && -z ${stderr} ]]
}

@test "a bucket that is skipped is recorded with its reason, and is no backup by itself" {
  printf "BACKUP_BUCKET=minio=s3://documents\nBACKUP_BUCKET_SKIP=the provider's\n" >>"${FAKE}/settings"
  run -0 "${backup}"
  grep -Fx "bk-push add --bucket s3://documents --as minio --skip the provider's" "${FAKE}/calls"
  sed -i '/POSTGRES\|SQLITE\|CONFIG\|ROOT\|TREES/d' "${FAKE}/settings"
  run -2 "${backup}"
  [[ ${output} == *'no setting says what to back up'* ]]
}

# Adds a second destination, with rules of its own.
second_destination() {
  printf 'BACKUP_COPY_DESTINATION_PATH=s3://far/b\nBACKUP_COPY_RETENTION_DAYS=90\nBACKUP_COPY_KEEP_YEARLY=2\n' >>"${FAKE}/settings"
}

@test "each backup is copied to the second destination, and pruned there by its own rules" {
  second_destination
  run --separate-stderr -0 "${backup}"
  [[ ${output} == *'; stored 1.2 MiB; kept 3, marked 0, removed 1, freed 2 KiB; copied to s3://far/b, kept 3, marked 0, removed 1, freed 2 KiB' ]]
  [[ -z ${stderr} && ${#lines[@]} == 1 ]]
  # The steps of each pipe start at once.
  run -0 sed -n '/bk-push copy/,$p' "${FAKE}/calls"
  [[ ${output} != *'bk-manifest new'* && ${output} != *'bk-push --to'* ]]
  grep -Fx 'bk-push copy --from /dest --to s3://far/b --to-access BACKUP_COPY' "${FAKE}/calls"
  grep -Fx 'bk-verify --from s3://far/b --access BACKUP_COPY' "${FAKE}/calls"
  grep -Fx 'bk-prune --from s3://far/b --access BACKUP_COPY' "${FAKE}/calls"
  [[ $(<"${FAKE}/rules-bk-prune") == 'BACKUP_KEEP_LAST=3' ]]
  [[ $(<"${FAKE}/rules-bk-prune-copy") == $'BACKUP_KEEP_YEARLY=2\nBACKUP_RETENTION_DAYS=90' ]]
}

@test "without rules for the second destination none is pruned there" {
  echo 'BACKUP_COPY_DESTINATION_PATH=/copy' >>"${FAKE}/settings"
  run --separate-stderr -0 "${backup}"
  [[ ${output} == *'; copied to /copy' && ! -e ${FAKE}/rules-bk-prune-copy ]]
}

@test "a first destination that fails ends the run before the second" {
  second_destination
  local step
  for step in "${steps[@]:0:8}"; do
    echo 1 >"${FAKE}/codes/${step}"
    run -1 "${backup}"
    rm "${FAKE}/codes/${step}"
  done
  run ! grep copy "${FAKE}/calls"
}

@test "a backup that is verified is copied, whatever prune finds at the first destination" {
  second_destination
  echo 21 >"${FAKE}/codes/bk-prune"
  run --separate-stderr -21 "${backup}"
  [[ ${stderr} == *'bk-prune ended with 21; the backup was stored, but not all that follows was done'* ]]
  [[ ${stderr} == *'backup.sh: the backup was stored; copied to s3://far/b, kept 3, '* ]]
  echo 10 >"${FAKE}/codes/bk-push-copy"
  run --separate-stderr -21 "${backup}"
  [[ ${stderr} == *'the copy at s3://far/b was not made: bk-push copy ended with 10'* ]]
}

@test "several destinations, and several backups to restore, are refused" {
  run -2 "${backup}" /one /two
  [[ ${output} == *"not '/one' and '/two'" ]]
  run -2 "${BATS_TEST_DIRNAME}/../../scripts/restore.sh" one two
  [[ ${output} == *"not 'one' and 'two'" ]]
}

@test "a second destination that fails is 3, named in one line, and costs the first nothing" {
  second_destination
  local code
  for code in 1 2 10 11 12 13 20 21 22 137 'early 10'; do
    echo "${code}" >"${FAKE}/codes/bk-push-copy"
    run --separate-stderr -3 "${backup}"
    [[ ${stderr} == "backup.sh: error: the copy at s3://far/b was not made: bk-push copy ended with ${code#early }" ]]
    [[ ${output} == 'backup.sh: done with warnings backup-'*'; kept 3, '*'; the copy at s3://far/b was not made' ]]
  done
  rm "${FAKE}/codes/bk-push-copy"
  local step
  for step in bk-verify bk-prune; do
    echo 20 >"${FAKE}/codes/${step}-copy"
    run --separate-stderr -3 "${backup}"
    [[ ${stderr} == "backup.sh: error: the copy at s3://far/b was made, but not all that follows was done: ${step} ended with 20" ]]
    rm "${FAKE}/codes/${step}-copy"
  done
}

@test "a 3 of the first destination stays, and so does one of the second" {
  second_destination
  local step
  for step in bk-manifest-add bk-push-copy bk-verify-copy bk-prune-copy; do
    echo 3 >"${FAKE}/codes/${step}"
    run --separate-stderr -3 "${backup}"
    [[ ${output} == 'backup.sh: done with warnings '*'; copied to s3://far/b, '* && -z ${stderr} ]]
    rm "${FAKE}/codes/${step}"
  done
}

@test "services start again before the copy, and once more at the end if they did not" {
  second_destination
  echo 'BACKUP_STOP_SERVICES=api' >>"${FAKE}/settings"
  run -0 "${backup}"
  [[ $(grep -E '^docker|copy' "${FAKE}/calls" | sed 's/ -.*//' | head -n 3 | paste -sd,) == 'docker compose stop api,docker compose start api,bk-push copy' ]]
  [[ $(grep -c 'compose start' "${FAKE}/calls") == 1 ]]
  : >"${FAKE}/calls"
  printf '#!/bin/bash\n[[ $2 != ps ]] || exec echo 0123456789ab\necho "docker $*" >>"${FAKE}/calls"\n[[ $2 != start ]]\n' >"${FAKE}/bin/docker"
  run -1 "${backup}"
  [[ $(grep -c 'compose start' "${FAKE}/calls") == 2 && ${output} == *'copied to s3://far/b'* ]]
}

@test "the first backup prints the recovery sheet, the next ones do not" {
  touch "${FAKE}/first"
  run --separate-stderr -0 "${backup}" --env-file /srv/app.env
  [[ ${lines[0]} == '# RECOVERY SHEET' && ${lines[-1]} == 'backup.sh: ok '* ]]
  grep -Fx 'bk-manifest settings --env-file /srv/app.env --sheet' "${FAKE}/calls"
  rm "${FAKE}/first"
  run --separate-stderr -0 "${backup}"
  [[ ${output} != *SHEET* ]]
  # Nor does one that was not stored.
  touch "${FAKE}/first"
  echo 1 >"${FAKE}/codes/bk-push"
  run --separate-stderr -1 "${backup}"
  [[ ${output} != *SHEET* ]]
}
