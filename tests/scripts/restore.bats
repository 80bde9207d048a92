#!/usr/bin/env bats
# The order of restore.sh, its questions and its exit codes, with fake tools.
# shellcheck disable=SC2154,SC2312 # set by bats and `run`; a test fails by what it asserts
# shellcheck disable=SC2016,SC2164 # for the fakes to expand; bats stops at a failure

load common

setup() {
  fake_tools
  restore=${BATS_TEST_DIRNAME}/../../scripts/restore.sh
  srv=${BATS_TEST_TMPDIR}/srv
  mkdir -p "${srv}/files"
  cat >"${FAKE}/settings" <<END
BACKUP_APP=app
BACKUP_DESTINATION_PATH=/dest
BACKUP_SQLITE=${srv}/app.db
BACKUP_CONFIG_FILES=app.env:secrets
BACKUP_ROOT=${srv}/files
BACKUP_STOP_SERVICES=api worker
END
  cat >"${FAKE}/show" <<END
backup       backup-20260428-022150-a1b2c3d4 (incremental)
application  app 2.4.0
entries      12 files, 3.4 MiB
components   database         sqlite      complete          1 entries      130 B
             config           archive     complete          1 entries      236 B
             files            tree        complete         10 entries    3.4 MiB
objects      2 in this backup, 1.2 MiB; 1 in 1 earlier, 2.2 MiB
END
}

# Fails if anything but looking was done.
nothing_was_touched() {
  run ! grep -vE '^(bk-manifest (settings|show)|bk-push (list|manifest|fetch.* --dry-run)|bk-verify --from /dest --level present)' "${FAKE}/calls"
  [[ $(ls -A "${srv}") == files && -z $(ls -A "${srv}/files") ]]
}

# Has calls of one tool that match end with a code. $1: the tool, $2: a part of its arguments, $3: the code,
# $4: the step.
break_call() {
  mkdir "${FAKE}/real" && mv "${FAKE}/bin/$1" "${FAKE}/real/$1"
  printf '#!/bin/bash\n[[ $* != *%s* || ($* == *--dry-run && %s != *-dry-run) ]] || echo %s >"${FAKE}/codes/%s"\nexec "${FAKE}/real/%s" "$@"\n' "$2" "$4" "$3" "$4" "$1" >"${FAKE}/bin/$1"
  chmod +x "${FAKE}/bin/$1"
}

# Runs restore.sh at a terminal. $1: what is typed there; the rest: arguments.
at_terminal() {
  local typed=$1
  shift
  run script -qec "$(printf '%q ' "${restore}" "$@")" /dev/null < <(printf '%b' "${typed}" && sleep 0.5)
}

@test "without an id it lists" {
  run -0 "${restore}"
  [[ $(calls | paste -sd,) == 'bk-manifest settings,bk-push list' ]]
}

@test "without a terminal and without --confirm nothing is touched" {
  alone "${restore}" latest
  [[ ${status} == 2 && ${stderr} == *'answer with --confirm NAME'* ]]
  nothing_was_touched
}

@test "without a terminal and without --secrets nothing is touched" {
  alone "${restore}" latest --confirm app
  [[ ${status} == 2 && ${stderr} == *'answer with --secrets yes|no'* ]]
  nothing_was_touched
}

@test "a wrong name, given or typed, touches nothing" {
  run -2 "${restore}" latest --confirm other --secrets no
  [[ ${output} == *"'other' is not the application's name; nothing was touched"* ]]
  at_terminal 'yes\n' latest
  [[ ${status} == 2 && ${output} == *"'yes' is not the application's name"* ]]
  at_terminal '\n' latest
  [[ ${status} == 2 ]]
  nothing_was_touched
}

@test "an answer that is neither yes nor no touches nothing" {
  run -2 "${restore}" latest --confirm app --secrets maybe
  at_terminal 'app\nmaybe\n' latest
  [[ ${status} == 2 && ${output} == *"'maybe' is neither yes nor no"* ]]
  nothing_was_touched
}

@test "the right name and an answer, typed, restore" {
  at_terminal 'app\nno\n' latest
  [[ ${status} == 0 && ${output} == *'restore.sh: ok backup-20260428-022150-a1b2c3d4 is restored'* ]]
}

@test "the order: stop, files, compare, configuration, database, start" {
  run --separate-stderr -0 "${restore}" --env-file "${srv}/app.env" latest --confirm app --secrets yes
  [[ ${output} == *'restore.sh: ok backup-20260428-022150-a1b2c3d4 is restored' && -z ${stderr} ]]
  run -0 sed -E 's/\.bk-restore-app\.[[:alnum:]]{10}/STAGE/g' "${FAKE}/calls"
  diff - <(echo "${output}") <<END
bk-manifest settings --env-file ${srv}/app.env --require BACKUP_APP --require BACKUP_DESTINATION_PATH
bk-push manifest latest --from /dest
bk-verify --from /dest --level present
bk-manifest show $(sed -n 's/^bk-manifest show //p' "${FAKE}/calls")
bk-push fetch --from /dest --target ${srv}/STAGE --component database --component config
bk-push fetch --dry-run --from /dest --target ${srv}/files --into --component files
bk-dump restore --from ${srv}/STAGE --into ${srv}/STAGE/config
docker compose stop api worker
bk-dump restore --dry-run --from ${srv}/STAGE --to ${srv}/app.db --replace
bk-push fetch --from /dest --target ${srv}/files --into --component files
bk-verify --against ${srv}/files --component files
bk-dump restore --from ${srv}/STAGE --to ${srv}/app.db --replace
docker compose start api worker
END
  [[ $(ls -A "${srv}") == files ]]
}

# Has the backup hold two buckets, and the settings say where they go.
with_buckets() {
  sed -i '/ tree /a\             minio            bucket      complete          1 entries      130 B\n             other            bucket      complete          1 entries      130 B' "${FAKE}/show"
  echo 'BACKUP_BUCKET=other=s3://b/x=y minio=s3://documents' >>"${FAKE}/settings"
}

@test "buckets are looked at before anything is replaced, and put back behind the files" {
  with_buckets
  run -0 "${restore}" latest --confirm app --secrets no
  [[ ${output} == *'plan         minio            into s3://documents; what differs is overwritten, what the backup lacks stays'* ]]
  run -0 sed -nE 's/--bucket-access BACKUP_BUCKET --into/INTO/; s/.* fetch --from \/dest( --component [a-z]* --bucket )/fetch\1/p; s/.*verify --against .*/files/p; s/.*--replace$/database/p; s/^docker //p' "${FAKE}/calls"
  diff - <(echo "${output}") <<END
fetch --component minio --bucket s3://documents INTO --dry-run
fetch --component other --bucket s3://b/x=y INTO --dry-run
compose stop api worker
database
files
fetch --component minio --bucket s3://documents INTO
fetch --component other --bucket s3://b/x=y INTO
database
compose start api worker
END
  run -0 "${restore}" latest --confirm app --secrets no --delete-strangers
  [[ ${output} == *'into s3://documents; what differs is overwritten, what the backup lacks is removed'* ]]
  [[ $(grep -c -- '--delete-strangers$' "${FAKE}/calls") == 2 ]]
}

@test "a bucket that may lose nothing is told by the dry run, and before anything is replaced" {
  with_buckets
  break_call bk-push --delete-strangers 2 bk-push-fetch-dry-run
  run -0 "${restore}" latest --dry-run
  run -2 "${restore}" latest --dry-run --delete-strangers
  run --separate-stderr -2 "${restore}" latest --confirm app --secrets no --delete-strangers
  [[ ${stderr} == *'restore.sh: nothing was replaced' ]]
  run ! grep docker "${FAKE}/calls"
}

@test "a bucket that has no place, or is out of reach, is told before anything is replaced" {
  with_buckets
  run -0 "${restore}" latest --dry-run
  [[ $(grep -c 'fetch .*--bucket .*--dry-run' "${FAKE}/calls") == 2 ]]
  nothing_was_touched
  break_call bk-push --bucket 12 bk-push-fetch-dry-run
  run --separate-stderr -12 "${restore}" latest --confirm app --secrets no
  [[ ${stderr} == *'restore.sh: nothing was replaced' ]]
  run ! grep docker "${FAKE}/calls"
  sed -i 's/^BACKUP_BUCKET=.*/BACKUP_BUCKET=minio=s3:\/\/documents/' "${FAKE}/settings"
  run --separate-stderr -2 "${restore}" latest --confirm app --secrets no
  [[ ${stderr} == *"'other' (bucket) goes: it needs other=s3://BUCKET"* ]]
  sed -i '/^BACKUP_BUCKET=/d' "${FAKE}/settings"
  run --separate-stderr -2 "${restore}" latest --confirm app --secrets no
  [[ ${stderr} == *"no BACKUP_BUCKET says where 'minio' (bucket) goes"* ]]
}

@test "objects that are lost are 3 and all else is done; a bucket that fails is half-way" {
  with_buckets
  break_call bk-push --delete-strangers 3 bk-push-fetch
  run --separate-stderr -3 "${restore}" latest --confirm app --secrets no --delete-strangers
  [[ ${output} == *'is restored, without what is listed above' ]]
  grep -q 'bk-dump restore --from .* --replace$' "${FAKE}/calls"
  sed -i 's/echo 3/echo 12/' "${FAKE}/bin/bk-push"
  rm "${FAKE}/codes/bk-push-fetch"
  run --separate-stderr -12 "${restore}" latest --confirm app --secrets no --delete-strangers
  [[ ${stderr} == *'HALF-WAY. What it replaced was put aside, but not what was in a bucket; run it again'* ]]
}

@test "a bucket that is skipped by now is not put back" {
  with_buckets
  echo 'BACKUP_BUCKET_SKIP=elsewhere' >>"${FAKE}/settings"
  run -0 "${restore}" latest --confirm app --secrets no
  [[ ${output} == *'plan         minio            not restored: BACKUP_BUCKET_SKIP says why'* ]]
  run ! grep -e --bucket "${FAKE}/calls"
}

@test "a backup does not start while a restore runs" {
  echo "BACKUP_MIGRATE=touch '${FAKE}/busy'; sleep 2" >>"${FAKE}/settings"
  "${restore}" latest --confirm app --secrets no >/dev/null 2>&1 3>&- &
  until [[ -e ${FAKE}/busy ]]; do sleep 0.05; done
  : >"${FAKE}/calls"
  run -11 "${restore%/*}/backup.sh"
  run ! grep -E 'docker|bk-push' "${FAKE}/calls"
  wait "$!"
}

@test "PostgreSQL goes last, and its 2 half-way is a 1" {
  sed -i 's/sqlite  /postgresql/' "${FAKE}/show"
  echo 'BACKUP_POSTGRES=docker:pg/new' >>"${FAKE}/settings"
  echo 2 >"${FAKE}/codes/bk-dump-restore"
  run --separate-stderr -1 "${restore}" latest --confirm app --secrets no
  [[ ${stderr} == *'THE RESTORE STOPPED HALF-WAY'* ]]
  [[ $(tail -n 2 "${FAKE}/calls" | sed 's/ .*--via/ --via/' | paste -sd,) == 'bk-dump --via docker:pg --replace --verbose --database new,docker compose start api worker' ]]
  # Alone, it leaves all as it was.
  sed -i '/ tree /d' "${FAKE}/show"
  run --separate-stderr -2 "${restore}" latest --confirm app --secrets no
  [[ ${stderr} == *'restore.sh: nothing was replaced' ]]
  rm "${FAKE}/codes/bk-dump-restore"
  break_call docker start 1 docker-compose
  run --separate-stderr -1 "${restore}" latest --confirm app --secrets no
  [[ ${stderr} == *'could not start again'*'everything was restored' ]]
}

@test "roles come before the database that needs them, and migrations last" {
  sed -i 's/sqlite  /postgresql/' "${FAKE}/show"
  sed -i '/ postgresql /a\             globals          globals     complete          1 entries      130 B' "${FAKE}/show"
  printf 'BACKUP_POSTGRES=docker:pg/new\nBACKUP_MIGRATE=echo migrate >>"${FAKE}/calls"\n' >>"${FAKE}/settings"
  run -0 "${restore}" latest --confirm app --secrets no
  [[ ${output} == *'plan         globals '*'roles that the server lacks are made'* ]]
  run -0 sed -nE 's/--from [^ ]* //; /^bk-dump|migrate|start/p' "${FAKE}/calls"
  [[ $(paste -sd, <<<"${output}") == 'bk-dump restore --component globals --via docker:pg,bk-dump restore --dry-run --via docker:pg --replace --verbose --database new,bk-dump restore --via docker:pg --replace --verbose --database new,migrate,docker compose start api worker' ]]
  sed -i 's/^BACKUP_MIGRATE=.*/BACKUP_MIGRATE=exit 2/' "${FAKE}/settings"
  run --separate-stderr -1 "${restore}" latest --confirm app --secrets no
  [[ ${stderr} == *'everything was restored, but BACKUP_MIGRATE has not ended well' ]]
}

@test "a database that lacks a setting afterwards is 3, and all else is done" {
  sed -i 's/sqlite  /postgresql/' "${FAKE}/show"
  printf 'BACKUP_POSTGRES=docker:pg/new\nBACKUP_MIGRATE=echo migrate >>"${FAKE}/calls"\n' >>"${FAKE}/settings"
  echo 3 >"${FAKE}/codes/bk-dump-restore"
  run --separate-stderr -3 "${restore}" latest --confirm app --secrets no
  [[ ${output} == *'is restored, without what is listed above' ]]
  run -0 grep -c migrate "${FAKE}/calls"
}

@test "a PostgreSQL database in use is refused before anything is stopped or replaced" {
  sed -i 's/sqlite  /postgresql/' "${FAKE}/show"
  echo 'BACKUP_POSTGRES=docker:pg/new' >>"${FAKE}/settings"
  echo 2 >"${FAKE}/codes/bk-dump-restore-dry-run"
  run --separate-stderr -2 "${restore}" latest --confirm app --secrets no
  [[ ${stderr} == *'restore.sh: nothing was replaced' ]]
  run ! grep -e '^docker' -e 'fetch --from.* --into' "${FAKE}/calls"
}

@test "an SQLite database in use is refused before anything is replaced" {
  echo 11 >"${FAKE}/codes/bk-dump-restore-dry-run"
  run --separate-stderr -11 "${restore}" latest --confirm app --secrets yes
  [[ ${stderr} == *'restore.sh: nothing was replaced' && $(tail -n 1 "${FAKE}/calls") == 'docker compose start api worker' ]]
  run ! grep -e 'fetch --from.* --into' "${FAKE}/calls"
  # Where it goes there is nothing yet, and nothing to be in use.
  rm "${FAKE}/codes/bk-dump-restore-dry-run"
  echo "BACKUP_SQLITE=${srv}/new/app.db" >>"${FAKE}/settings"
  run -0 "${restore}" latest --confirm app --secrets yes
  [[ $(grep -c 'restore --dry-run' "${FAKE}/calls") == 1 ]]
}

@test "several databases or archives of one kind are refused before anything stops" {
  local kind
  for kind in sqlite archive; do
    sed "/^components/r"<(grep " ${kind} " "${FAKE}/show" | sed 's/^components  / /; s/database\|config/other/') "${FAKE}/show" >"${FAKE}/two"
    cp "${FAKE}/show" "${FAKE}/one" && mv "${FAKE}/two" "${FAKE}/show"
    run -2 "${restore}" latest --confirm app --secrets yes
    [[ ${output} == *"several components of the kind ${kind}"* ]]
    nothing_was_touched
    mv "${FAKE}/one" "${FAKE}/show"
  done
}

@test "places that cannot be are refused before anything stops" {
  sed -i "s|^BACKUP_SQLITE=.*|BACKUP_SQLITE=${srv}/files|" "${FAKE}/settings"
  run -2 "${restore}" latest --confirm app --secrets no
  [[ ${output} == *'BACKUP_SQLITE is a folder'* ]]
  nothing_was_touched
  sed -i "s|^BACKUP_SQLITE=.*|BACKUP_SQLITE=${srv}/app.db|; s|^BACKUP_ROOT=.*|BACKUP_ROOT=/etc/passwd|" "${FAKE}/settings"
  run -2 "${restore}" latest --confirm app --secrets no
  [[ ${output} == *'BACKUP_ROOT is no folder'* ]]
  nothing_was_touched
}

@test "a dry run says what goes where, and touches nothing" {
  run -0 "${restore}" latest --dry-run
  [[ ${output} == *"plan         database         to ${srv}/app.db; the one there is kept"* ]]
  [[ ${output} == *"plan         files            below ${srv}/files; what is replaced is kept"* ]]
  nothing_was_touched
}

@test "a backup that does not verify is not restored" {
  echo 20 >"${FAKE}/codes/bk-verify"
  run -20 "${restore}" latest --confirm app --secrets no
  nothing_was_touched
}

@test "no such backup is 13, and no destination 10" {
  local code
  for code in 13 10; do
    echo "${code}" >"${FAKE}/codes/bk-push-manifest"
    run "${restore}" nonsense --confirm app --secrets no
    [[ ${status} == "${code}" ]]
  done
  nothing_was_touched
}

@test "the backup of another application is refused" {
  sed -i 's/^application  app/application  application/' "${FAKE}/show"
  run -2 "${restore}" latest --confirm app --secrets no
  [[ ${output} == *'this is no backup of app'* ]]
  nothing_was_touched
}

@test "a component without a setting for its place is refused" {
  sed -i '/SQLITE/d' "${FAKE}/settings"
  run -2 "${restore}" latest --confirm app --secrets no
  [[ ${output} == *"no BACKUP_SQLITE says where 'database' (sqlite) goes"* ]]
  nothing_was_touched
}

@test "files that are lost are 3" {
  break_call bk-push --into 3 bk-push-fetch
  run -3 "${restore}" latest --confirm app --secrets no
  [[ ${output} == *'is restored, without what is listed above'* ]]
}

@test "a restore that stops half-way says so, and the services start again" {
  break_call bk-push --into 1 bk-push-fetch
  run --separate-stderr -1 "${restore}" latest --confirm app --secrets no
  [[ ${stderr} == *'THE RESTORE STOPPED HALF-WAY'* ]]
  [[ $(tail -n 1 "${FAKE}/calls") == 'docker compose start api worker' ]]
}

@test "a 2 of a step half-way is a 1: something was touched" {
  break_call bk-dump --to 2 bk-dump-restore
  run -1 "${restore}" latest --confirm app --secrets no
  [[ ${output} == *'THE RESTORE STOPPED HALF-WAY'* ]]
}

@test "a first step that touches nothing is not half-way" {
  local code
  break_call bk-push --into 2 bk-push-fetch
  for code in 2 13 20 21; do
    sed -i "s/echo [0-9]*/echo ${code}/" "${FAKE}/bin/bk-push"
    rm -f "${FAKE}/codes/bk-push-fetch"
    run "${restore}" latest --confirm app --secrets no
    [[ ${status} == "${code}" && ${output} == *'restore.sh: nothing was replaced' ]]
  done
}

@test "a restore that is stopped before it begins removes nothing" {
  touch "${srv}/app.db"
  # A signal comes with its N-th program.
  local program number
  mkdir "${FAKE}/kill"
  for program in date dirname install mktemp realpath touch; do
    printf '#!/bin/bash\necho >>"${FAKE}/count"\n[[ $(wc -l <"${FAKE}/count") != "${AT}" ]] || kill -TERM "-$(ps -o pgid= "$$" | tr -d " ")"\nexec %q "$@"\n' \
      "$(command -v "${program}")" >"${FAKE}/kill/${program}"
    chmod +x "${FAKE}/kill/${program}"
  done
  for number in {1..20}; do
    rm -f "${FAKE}/count"
    alone env "PATH=${FAKE}/kill:${PATH}" "AT=${number}" "${restore}" latest --confirm app --secrets yes
    [[ -d ${srv}/files && -e ${srv}/app.db ]]
    [[ ${status} != 0 || $(wc -l <"${FAKE}/count") -lt ${number} ]]
  done
  [[ ${status} == 0 ]]
}

@test "what came back differs: 20, said loudly" {
  break_call bk-verify --against 20 bk-verify
  run --separate-stderr -20 "${restore}" latest --confirm app --secrets no
  [[ ${stderr} == *'THE RESTORE STOPPED HALF-WAY'* ]]
  [[ $(tail -n 1 "${FAKE}/calls") == 'docker compose start api worker' ]]
}

@test "--target only fetches" {
  run -0 "${restore}" latest --target "${BATS_TEST_TMPDIR}/out"
  [[ $(calls | paste -sd,) == 'bk-manifest settings,bk-push manifest,bk-verify --from,bk-manifest show,bk-push fetch' ]]
}

@test "malformed settings and arguments end with 2 before anything" {
  run -2 "${restore}" --nonsense
  run -2 "${restore}" latest --confirm
  [[ ! -s ${FAKE}/calls ]]
  echo 2 >"${FAKE}/codes/bk-manifest-settings"
  run -2 "${restore}" latest --confirm app
  [[ $(calls) == 'bk-manifest settings' ]]
}

@test "BK_STAGE names another place for what is fetched first, and it is said where no place will do" {
  sed -i "s|^BACKUP_ROOT=.*|BACKUP_ROOT=/proc/files|" "${FAKE}/settings"
  run --separate-stderr -2 "${restore}" latest --confirm app --secrets no
  [[ ${stderr} == *"dumps and archives cannot be fetched into '/proc'; BK_STAGE can name another folder"*'nothing was replaced' ]]
  run ! grep -E '^(bk-push fetch|docker)' "${FAKE}/calls"
  sed -i "s|^BACKUP_ROOT=.*|BACKUP_ROOT=${srv}/files|" "${FAKE}/settings"
  echo "BK_STAGE=${srv}/new/stage" >>"${FAKE}/settings"
  run -0 "${restore}" latest --dry-run
  [[ ${output} == *"plan         dumps, archives  first into a folder in ${srv}/new/stage"* && ! -e ${srv}/new ]]
  run -0 "${restore}" latest --confirm app --secrets no
  grep -E "^bk-push fetch .* ${srv}/new/stage/\.bk-restore-app\.[^ /]* --component database" "${FAKE}/calls"
  [[ -z $(ls -A "${srv}/new/stage") && $(stat -c %a "${srv}/new/stage") == 700 ]]
  # What is too small is known only now.
  echo 1 >"${FAKE}/codes/bk-push-fetch"
  run --separate-stderr -1 "${restore}" latest --confirm app --secrets no
  [[ ${stderr} == *"if ${srv}/new/stage is too small, BK_STAGE can name another folder"*'nothing was replaced' ]]
}

@test "what a killed restore fetched is removed by the next one, and nothing else" {
  local old mine other file link name living
  echo 'BACKUP_MIGRATE=kill -KILL "${PPID}"' >>"${FAKE}/settings"
  run -137 "${restore}" latest --confirm app --secrets yes
  old=$(echo "${srv}"/.bk-restore-app.*)
  [[ -d ${old} ]]
  sed -i '/MIGRATE/d' "${FAKE}/settings"
  other=${srv}/.bk-restore-app.b.0123456789 name=${srv}/.bk-restore-app.mine mine=${srv}/.bk-restore-app.mine-12345
  file=${srv}/.bk-restore-app.012345678f link=${srv}/.bk-restore-app.012345678k living=${srv}/.bk-restore-app.0123456789
  mkdir "${other}" "${name}" "${mine}" "${living}" "${srv}/elsewhere"
  touch "${file}" "${srv}/elsewhere/kept"
  ln -s elsewhere "${link}"
  exec 7<"${living}" # a step that outlived its script still writes there
  flock 7
  run -0 "${restore}" latest --confirm app --secrets yes
  [[ ${output} == *"removed      ${old}, which a killed restore left"* && ! -e ${old} ]]
  [[ -d ${other} && -d ${name} && -d ${mine} && -e ${file} && -L ${link} && -e ${srv}/elsewhere/kept && -d ${living} ]]
  exec 7<&-
  run -0 "${restore}" latest --confirm app --secrets yes
  [[ ! -e ${living} ]]
  [[ $(grep -c removed <<<"${output}") == 1 ]]
}

@test "a disk too small for the files is told before anything stops, and is not half-way" {
  echo 1 >"${FAKE}/codes/bk-push-fetch-dry-run"
  run --separate-stderr -1 "${restore}" latest --confirm app --secrets no
  [[ ${stderr} == *'restore.sh: nothing was replaced' ]]
  run ! grep -e docker -e 'fetch --from.* --into' "${FAKE}/calls"
  run -1 "${restore}" latest --dry-run
  sed -i '/ tree /d' "${FAKE}/show"
  run -1 "${restore}" latest --dry-run
  [[ ${output} == *"if ${srv} is too small, BK_STAGE can name another folder"* ]]
}

@test "the end of a backup that is partial is 3, and says what it lacks" {
  sed -i 's/tree        complete/tree        partial /; s/archive     complete/archive     partial /' "${FAKE}/show"
  sed -i '/^objects/i left out     1 too large: film\n             2 unreadable: a, b\n             1 unnameable: minio/a//b' "${FAKE}/show"
  run --separate-stderr -3 "${restore}" latest --confirm app --secrets no
  [[ ${lines[-1]} == 'restore.sh: backup-20260428-022150-a1b2c3d4 is restored; but the backup itself is partial: files (2 unreadable: a, b; 1 unnameable: minio/a//b)' ]]
  run --separate-stderr -3 "${restore}" latest --confirm app --secrets yes
  [[ ${lines[-1]} == *'partial: config files (2 unreadable: a, b; 1 unnameable: minio/a//b)' && -z ${stderr} ]]
  run --separate-stderr -3 "${restore}" latest --target "${BATS_TEST_TMPDIR}/out"
  [[ ${lines[-1]} == "restore.sh: fetched into ${BATS_TEST_TMPDIR}/out; but the backup itself is partial: config files"* ]]
  break_call bk-push --into 3 bk-push-fetch
  run --separate-stderr -3 "${restore}" latest --confirm app --secrets no
  [[ ${lines[-1]} == *'is restored, without what is listed above; but the backup itself is partial: files'* ]]
}

@test "--copy takes everything from the second destination" {
  echo 'BACKUP_COPY_DESTINATION_PATH=me@far:/b' >>"${FAKE}/settings"
  run -0 "${restore}" --copy
  run -0 "${restore}" --copy latest --dry-run
  run -0 "${restore}" latest --target "${BATS_TEST_TMPDIR}/out" --copy
  run -0 "${restore}" --copy latest --confirm app --secrets yes
  [[ $(grep -c 'bk-push fetch --from me@far:/b --access BACKUP_COPY ' "${FAKE}/calls") -ge 4 ]]
  run ! grep -e '--from /dest' "${FAKE}/calls"
  run -0 grep -e '--from me@far:/b' "${FAKE}/calls"
  [[ ${output} == *'bk-push list '*'bk-push manifest latest '*'bk-verify '* ]]
  run ! grep -v -- '--access BACKUP_COPY' <<<"${output}"
  grep -q 'settings --require BACKUP_COPY_DESTINATION_PATH' "${FAKE}/calls"
}

@test "a destination elsewhere is never taken for a folder" {
  local place
  cd "${srv}"
  for place in s3://bucket/prefix me@nas:/volume rsync://nas/module; do
    sed -i "s|^BACKUP_DESTINATION_PATH=.*|BACKUP_DESTINATION_PATH=${place}|" "${FAKE}/settings"
    run -0 "${restore}" latest --dry-run
    run -0 "${restore}" latest --confirm app --secrets no
    [[ $(ls -A) == files ]]
    grep -q "bk-push fetch --from ${place} " "${FAKE}/calls"
  done
}
