#!/usr/bin/env bats
# The scripts with the real tools, on small applications.
# shellcheck disable=SC2154,SC2312 # set by bats and `run`; a test fails by what it asserts
# shellcheck disable=SC2016,SC2164 # for the fakes to expand; bats stops at a failure

load common

setup() {
  real_tools
  scripts=${BATS_TEST_DIRNAME}/../../scripts
  cd "${BATS_TEST_TMPDIR}"
  export XDG_STATE_HOME=${BATS_TEST_TMPDIR}/state
  mkdir -p app/files/events app/secrets
  printf 'one\n' >app/files/events/one
  printf 'two\n' >app/files/two
  printf 'key\n' >app/secrets/key
  sqlite3 app/app.db 'CREATE TABLE t (a); INSERT INTO t VALUES (1), (2)'
  bk-push init --to dest --grace 0s
  printf 'BACKUP_%s\n' APP=app "DESTINATION_PATH=${PWD}/dest" "ROOT=${PWD}/app/files" "SQLITE=${PWD}/app/app.db" \
    CONFIG_FILES=app.env:secrets >app/app.env
  chmod 600 app/app.env
}

backup() { run --separate-stderr "${scripts}/backup.sh" --env-file app/app.env "$@"; }
restore() { run --separate-stderr "${scripts}/restore.sh" --env-file app/app.env "$@"; }
count_backups() { find dest -name manifest.json | wc -l; }

@test "the demo ends well" {
  run -0 "${scripts}/demo.sh"
  [[ ${output} == *'all equal.' ]]
}

@test "a run under cron is one line, but for the first" {
  backup
  [[ ${status} == 0 && -z ${stderr} && ${output} == '# RECOVERY SHEET '* && ${lines[-1]} == 'backup.sh: ok backup-'*' (full): 4 files'* ]]
  backup
  [[ ${#lines[@]} == 1 && ${output} == *'(incremental)'*'; stored 0 B' ]]
}

# Makes a bare host of this folder, and goes where the sheet is to be saved. $1: what the first backup printed
keep_sheet_alone() {
  rm -r app state
  mkdir app
  cd app
  sed '/^backup.sh: /d' <<<"$1" >recovery.env
  chmod 600 recovery.env
}

# The commands of the sheet that match, without what it says of them. $1: a part of them
on_sheet() { sed -nE 's/^#   (.*)/\1/p' recovery.env | sed 's/   .*//' | grep -e "$1"; }

@test "the recovery sheet and the destination bring everything back on a bare host" {
  backup
  keep_sheet_alone "${output}"
  ln -s "$(readlink -f "${scripts}")" scripts
  run -0 bash -c "$(on_sheet 'recovery.env$')"
  [[ ${output} == *backup-* ]]
  run -0 bash -c "$(on_sheet target)"
  [[ $(<restored/two) == two && -e restored/.bk/database/app.db.zst ]]
  run -0 bash -c "$(on_sheet 'latest$') --confirm app --secrets yes"
  [[ $(<files/events/one) == one && $(<secrets/key) == key && $(sqlite3 app.db 'SELECT sum(a) FROM t') == 3 ]]
  [[ $(<app.env) == *BACKUP_CONFIG_FILES* ]]
}

@test "the recovery sheet brings everything back by hand" {
  backup
  keep_sheet_alone "${output}"
  run -0 env PATH=/usr/bin:/bin bash -c "$(on_sheet newest)"
  [[ $(<restored/two) == two && -e restored/.bk/database/app.db.zst ]]
}

@test "encrypted backups come back with the recovery sheet and the private key, by the scripts and by hand" {
  age-keygen -o key.txt 2>recipient
  printf 'BACKUP_ENCRYPT=age:%s\n' "$(sed 's/.*: //' recipient)" >>app/app.env
  backup
  [[ ${status} == 0 && -z ${stderr} ]]
  [[ -z $(find dest -name '*.zst') && -n $(find dest -name '*.zst.age') ]]
  run -0 "${scripts}/backup.sh" --env-file app/app.env
  [[ ${output} == *'(incremental)'*'; stored 0 B' ]]
  run -0 bk-manifest settings --env-file app/app.env --sheet
  keep_sheet_alone "${output}"
  [[ $(<recovery.env) == *"#   $(sed 's/.*: /age:/' ../recipient)"* ]]
  run -0 bash -c "$(on_sheet newest | sed 's/KEYFILE/..\/key.txt/')"
  [[ $(<restored/two) == two && -e restored/.bk/database/app.db.zst ]]
  run "${scripts}/restore.sh" --env-file recovery.env latest --confirm app --secrets yes
  [[ ${status} == 12 && ! -e files ]]
  mv ../key.txt .
  sed -i "s|^BACKUP_IDENTITY_FILE=|&${PWD}/key.txt|" recovery.env
  run -0 "${scripts}/restore.sh" --env-file recovery.env latest --dry-run
  run -0 "${scripts}/restore.sh" --env-file recovery.env latest --confirm app --secrets yes
  [[ $(<files/events/one) == one && $(<secrets/key) == key && $(sqlite3 app.db 'SELECT sum(a) FROM t') == 3 ]]
}

@test "the recovery sheet is printed again at any time, and has no secret" {
  printf 'PGPASSWORD=hush\n' >>app/app.env
  backup
  printf '%s\n' "${output}" | sed '/^backup.sh: /d; 1d' >first
  run -0 bk-manifest settings --env-file app/app.env --sheet
  [[ ${output} != *hush* && ${output} == *'PGPASSWORD=  # secret'* ]]
  diff first <(sed 1d <<<"${output}")
}

@test "both destinations hold the backup, each by its own rules, and each restores it" {
  bk-push init --to copies --grace 0s
  printf 'BACKUP_%s\n' "COPY_DESTINATION_PATH=${PWD}/copies" KEEP_LAST=1 COPY_KEEP_LAST=2 >>app/app.env
  local index
  for index in 1 2 3; do
    printf 'x\n' >"app/files/${index}"
    backup
    [[ ${status} == 0 && -z ${stderr} && ${lines[-1]} == *"; kept 1, "*"; copied to ${PWD}/copies, kept "* ]]
  done
  [[ $(count_backups) == 1 && $(find copies -name manifest.json | wc -l) == 2 ]]
  cp app/app.env here.env
  rm -r app dest
  run -0 "${scripts}/restore.sh" --env-file here.env --copy
  [[ ${output} == *backup-*backup-* ]]
  run -0 "${scripts}/restore.sh" --env-file here.env --copy latest --confirm app --secrets no
  [[ $(<app/files/two) == two && $(<app/files/1) == x && $(<app/files/3) == x && $(sqlite3 app/app.db 'SELECT sum(a) FROM t') == 3 ]]
}

@test "a second destination that is not there is 3, and the next run catches up" {
  printf 'BACKUP_%s\n' "COPY_DESTINATION_PATH=${PWD}/copies" >>app/app.env
  backup
  [[ ${status} == 3 && ${stderr} == *"the copy at ${PWD}/copies was not made: bk-push copy ended with 10"* && ! -e copies ]]
  [[ $(count_backups) == 1 ]]
  bk-push init --to copies
  backup
  [[ ${status} == 0 ]]
  # The copy stands alone.
  rm -r dest app/files
  run -0 "${scripts}/restore.sh" --env-file app/app.env latest --copy --confirm app --secrets no
  [[ $(<app/files/two) == two ]]
}

@test "what was lost and what was changed comes back; what is replaced is put aside; strangers stay" {
  backup
  rm -r app/files/events
  printf 'damaged\n' >app/files/two
  printf 'new\n' >app/files/stranger
  sqlite3 app/app.db 'DELETE FROM t'
  restore latest --confirm app --secrets no
  [[ ${status} == 0 ]]
  [[ $(<app/files/events/one) == one && $(<app/files/two) == two && $(<app/files/stranger) == new ]]
  [[ $(cat app/files/.bk-replaced-*/two) == damaged ]]
  [[ $(sqlite3 app/app.db 'SELECT sum(a) FROM t') == 3 ]]
  [[ $(sqlite3 app/app.db.before-* 'SELECT count(*) FROM t') == 0 ]]
  [[ $(<app/secrets/key) == key ]]
  # What a restore leaves is no part of the next backup.
  backup
  [[ ${status} == 0 && ${output} == *': 5 files, '* ]]
}

@test "a backup whose tree held nothing is restored" {
  rm -r app/files/*
  backup
  [[ ${status} == 0 ]]
  rm app/app.db
  restore latest --dry-run
  [[ ${status} == 0 ]]
  restore latest --confirm app --secrets no
  [[ ${status} == 0 && $(sqlite3 app/app.db 'SELECT sum(a) FROM t') == 3 ]]
}

@test "secrets come back only when asked for, the env file only by force" {
  backup
  printf 'changed\n' >app/secrets/key
  printf '# changed\n' >>app/app.env
  restore latest --confirm app --secrets no
  [[ ${status} == 0 && $(<app/secrets/key) == changed ]]
  sleep 1 # what is put aside is named by the second
  restore latest --confirm app --secrets yes
  [[ ${status} == 0 && $(<app/secrets/key) == key && $(cat app/secrets/key.before-*) == changed ]]
  [[ $(tail -n 1 app/app.env) == '# changed' ]]
  [[ ${output} == *" below ${PWD}/app;"* && ${output} == *"put aside    '${PWD}/app/app.db.before-"*"' '${PWD}/app/secrets/key.before-"* ]]
  [[ ${output} != *" 'app/"* ]]
  rm app/secrets/key.before-*
  sleep 1
  restore latest --confirm app --secrets yes --force-config
  [[ ${status} == 0 && $(tail -n 1 app/app.env) != '# changed' && $(tail -n 1 app/app.env.before-*) == '# changed' ]]
  [[ $(stat -c %a app/app.env) == 600 ]]
}

@test "a second restore at once overwrites nothing that the first put aside" {
  backup
  printf 'changed\n' >app/secrets/key
  mkdir bin # a clock that stands still
  printf '#!/bin/bash\nexec %q -d 2026-01-01T00:00:00.%s "$@"\n' "$(command -v date)" '$(/bin/date +%N)' >bin/date
  chmod +x bin/date
  PATH=${PWD}/bin:${PATH} restore latest --confirm app --secrets yes
  PATH=${PWD}/bin:${PATH} restore latest --confirm app --secrets yes
  [[ ${status} == 0 && $(<app/secrets/key) == key ]]
  [[ $(cat app/secrets/key.before-* | sort | paste -sd,) == changed,key ]]
}

@test "folders that are there keep their mode" {
  chmod 751 app app/secrets
  backup
  restore latest --confirm app --secrets yes
  [[ ${status} == 0 && $(stat -c %a app) == 751 && $(stat -c %a app/secrets) == 751 ]]
}

@test "folders above what is restored are not touched, not even for a moment" {
  mkdir -p app/deep/a/b/gone elsewhere
  printf 'key\n' | tee app/deep/a/b/key app/deep/a/b/gone/key >/dev/null
  chmod 710 app/deep/a/b/gone
  sed -i "s|CONFIG_FILES=.*|CONFIG_FILES=${PWD}/app/deep|" app/app.env
  backup
  printf 'changed\n' >app/deep/a/b/key
  rm -r app/deep/a/b/gone
  local before after
  before=$(stat -c '%n %a %z' app/deep app/deep/a)
  sleep 0.01
  restore latest --confirm app --secrets yes
  after=$(stat -c '%n %a %z' app/deep app/deep/a)
  [[ ${status} == 0 && $(cat app/deep/a/b/key app/deep/a/b/gone/key | paste -sd,) == key,key ]]
  [[ $(stat -c %a app/deep/a/b/gone) == 710 && ${output} == *"put aside "*"${PWD}/app/deep/a/b/key.before-"* ]]
  diff -u <(echo "${before}") <(echo "${after}")
  # A link to a folder on the way is the host's own.
  mv app/deep elsewhere/deep
  ln -s ../elsewhere/deep app/deep
  rm elsewhere/deep/a/b/key
  restore latest --confirm app --secrets yes
  [[ ${status} == 0 && -L app/deep && $(<elsewhere/deep/a/b/key) == key ]]
}

@test "an application that is gone altogether comes back on a bare host" {
  backup
  cp -p app/app.env here.env
  rm -r app
  run -0 "${scripts}/restore.sh" --env-file here.env latest --confirm app --secrets no
  [[ $(<app/files/two) == two && $(sqlite3 app/app.db 'SELECT sum(a) FROM t') == 3 ]]
}

@test "--target fetches everything, and needs nothing but the destination" {
  backup
  run -0 env BACKUP_DESTINATION_PATH=dest "${scripts}/restore.sh" latest --target out
  [[ $(<out/two) == two && -e out/.bk/database/app.db.zst && -e out/.bk/config/config.tar.zst ]]
}

@test "a database that fails makes no backup and costs none" {
  backup
  mv app/app.db app/moved.db
  printf 'no database\n' >app/app.db
  backup
  [[ ${status} == 1 && ${stderr} == *'bk-dump sqlite ended with 1; no backup was made'* ]]
  [[ $(count_backups) == 1 ]]
  rm app/app.db
  backup
  [[ ${status} == 13 && $(count_backups) == 1 ]]
  mv app/moved.db app/app.db
  backup
  [[ ${status} == 0 && $(count_backups) == 2 ]]
}

@test "a database among the files is dumped, not copied" {
  mv app/app.db app/files/app.db
  sed -i 's/^BACKUP_SQLITE=.*/BACKUP_SQLITE=app\/files\/app.db/' app/app.env
  backup
  [[ ${status} == 0 ]]
  bk-push manifest latest --from dest --app app >manifest.json
  run -0 bk-manifest ls manifest.json
  [[ $'\n'${output} != *$'\napp.db'* && ${output} == *.bk/database/app.db.zst* ]]
  # Nor what a restore has put aside.
  restore latest --confirm app --secrets no
  [[ ${status} == 0 && -e $(echo app/files/app.db.before-*) ]]
  backup
  bk-push manifest latest --from dest --app app >manifest.json
  run -0 bk-manifest ls manifest.json
  [[ ${output} != *app.db.before-* ]]
}

@test "an application comes back on a bare host, with its database below the files" {
  mkdir -p 'app/files/deep/a[1]'
  mv app/app.db 'app/files/deep/a[1]/{a,b}*?.db'
  printf 'BACKUP_%s\n' APP=app "DESTINATION_PATH=${PWD}/dest" "ROOT=${PWD}/app/files" \
    "SQLITE='${PWD}/app/files/deep/a[1]/{a,b}*?.db'" >here.env
  run -0 "${scripts}/backup.sh" --env-file here.env
  bk-push manifest latest --from dest --app app >manifest.json
  run -0 bk-manifest ls manifest.json
  [[ ${output} != *'?.db'* ]]
  rm -r app
  run -0 "${scripts}/restore.sh" --env-file here.env latest --confirm app
  [[ $(<app/files/two) == two && $(sqlite3 'app/files/deep/a[1]/{a,b}*?.db' 'SELECT sum(a) FROM t') == 3 ]]
  # And once more, over what is there.
  sleep 1
  run -0 "${scripts}/restore.sh" --env-file here.env latest --confirm app
  [[ ${output} == *'put aside    '*'?.db.before-'* ]]
}

@test "only the database itself is left out of the files, whatever its name" {
  mv app/app.db 'app/files/a[1].db'
  printf 'not a database\n' | tee app/files/a1.db app/files/a1.db-wal >/dev/null
  sed -i "s|^BACKUP_SQLITE=.*|BACKUP_SQLITE='${PWD}/app/files/a[1].db'|" app/app.env
  backup
  bk-push manifest latest --from dest --app app >manifest.json
  run -0 bk-manifest ls manifest.json
  [[ ${output} == *a1.db*a1.db-wal* && ${output} != *'a[1].db'* ]]
}

@test "a database named by a link comes back under both names" {
  mkdir app/files/data
  mv app/app.db app/files/data/real.db
  ln -s data/real.db app/files/current.db
  sed -i "s|^BACKUP_SQLITE=.*|BACKUP_SQLITE=${PWD}/app/files/current.db|" app/app.env
  backup
  [[ ${status} == 0 ]]
  cp app/app.env here.env
  sqlite3 app/files/current.db 'INSERT INTO t VALUES (100)'
  restore latest --confirm app --secrets no
  [[ ${status} == 0 && $(cd app/files/data && echo real.db.before-*) == real.db.before-2* ]]
  [[ $(readlink app/files/current.db) == data/real.db && $(sqlite3 app/files/current.db 'SELECT sum(a) FROM t') == 3 ]]
  rm -r app
  run -0 "${scripts}/restore.sh" --env-file here.env latest --confirm app --secrets no
  [[ $(readlink app/files/current.db) == data/real.db && $(sqlite3 app/files/data/real.db 'SELECT sum(a) FROM t') == 3 ]]
}

@test "the env file is left alone whatever it is called by" {
  backup
  printf '# changed\n' >>app/app.env
  ln -s app.env app/link.env
  ln app/app.env app/hard.env
  for name in app/link.env app/./app.env app/hard.env; do
    run -0 --separate-stderr "${scripts}/restore.sh" --env-file "${name}" latest --confirm app --secrets yes
    [[ ${output} == *"put aside    "*secrets/key.before-* ]]
    [[ $(tail -n 1 app/app.env) == '# changed' && $(<app/secrets/key) == key ]]
    rm -r app/secrets/key.before-*
    sleep 1
  done
  run -0 --separate-stderr "${scripts}/restore.sh" --env-file app/link.env latest --confirm app --secrets yes --force-config
  [[ $(tail -n 1 app/app.env) != '# changed' && ${output} == *'put aside    '*app.env.before-* ]]
}

@test "a missing folder above the files is made" {
  backup
  sed "s|app/|new/place/|" app/app.env >here.env
  rm -r app
  run -0 "${scripts}/restore.sh" --env-file here.env latest --confirm app --secrets yes
  [[ $(<new/place/files/two) == two && $(sqlite3 new/place/app.db 'SELECT sum(a) FROM t') == 3 && $(<secrets/key) == key ]]
}

@test "an unmounted destination is 10, and no folder appears" {
  backup "${PWD}/unmounted"
  [[ ${status} == 10 && ! -e unmounted ]]
}

@test "a malformed setting is 2 and named, and an env file is never executed" {
  printf 'BACKUP_EXCLUDE=$(touch executed)\nBACKUP_KEEP_LAST=many\n' >>app/app.env
  backup
  [[ ${status} == 2 && ${stderr} == *'BACKUP_KEEP_LAST'* && $(count_backups) == 0 ]]
  sed -i '/KEEP_LAST/d' app/app.env
  backup
  [[ ! -e executed ]]
}

@test "an empty name of configuration, and an id that is not there, are named" {
  backup
  restore latest-one --confirm app --secrets no
  [[ ${status} == 13 && ${stderr} == *"no backup 'latest-one' at "* ]]
  sed -i 's/^BACKUP_CONFIG_FILES=.*/BACKUP_CONFIG_FILES=app.env::secrets/' app/app.env
  backup
  [[ ${status} == 2 && ${stderr} == *"BACKUP_CONFIG_FILES cannot be 'app.env::secrets'"*'none of them empty'* ]]
}

@test "retention: what is kept stays whole" {
  backup
  printf 'three\n' >app/files/three
  printf 'BACKUP_KEEP_LAST=1\n' >>app/app.env
  backup
  [[ ${status} == 0 && ${output} == *'kept 1, marked 0, removed 1'* && $(count_backups) == 1 ]]
  rm -r app/files
  restore latest --confirm app --secrets no
  [[ ${status} == 0 && $(<app/files/two) == two && $(<app/files/three) == three ]]
}

@test "a damaged volume: nothing is replaced by it, and it is said" {
  backup
  volume=$(find dest -name 000001.tar.zst)
  head -c 100 /dev/zero | dd of="${volume}" conv=notrunc status=none
  printf 'mine\n' >app/files/two
  restore latest --confirm app --secrets no
  [[ ${status} == 3 && ${stderr} == *lost* && $(<app/files/two) == mine ]]
}

@test "a folder in the way of a configuration file is told before anything is replaced" {
  mkdir app/secrets/sub
  printf 'key\n' >app/secrets/sub/deep
  ln -s key app/secrets/link
  backup
  printf 'mine\n' >app/files/two
  local name
  for name in key link; do # Docker makes one where a file to mount is missing
    rm "app/secrets/${name}" && mkdir "app/secrets/${name}"
    restore latest --confirm app --secrets yes
    [[ ${status} == 2 && ${stderr} == *"'${PWD}/app/secrets/${name}' is a folder, and none in the backup"*'nothing was replaced'* ]]
    rmdir "app/secrets/${name}"
  done
  run ! compgen -G 'app/*.before-*'
  [[ $(<app/files/two) == mine ]]
  # The other way round it is put aside.
  rm -r app/secrets/sub
  ln -s /nowhere app/secrets/sub
  restore latest --confirm app --secrets yes
  [[ ${status} == 0 && $(<app/secrets/sub/deep) == key && $(<app/secrets/link) == key && -L $(echo app/secrets/sub.before-*) ]]
}

@test "a damaged dump: nothing is touched, and that is no 3" {
  backup
  printf damage | dd of="$(find dest -name app.db.zst)" bs=1 seek=20 conv=notrunc status=none
  restore latest --confirm app --secrets yes
  [[ ${status} == 20 && ${stderr} == *'lost: '*'what is lost is needed'*'nothing was replaced'* ]]
  run ! compgen -G 'app/*.before-*'
  restore latest --target out
  [[ ${status} == 3 && ${lines[-1]} == 'restore.sh: fetched into out, without what is listed above' && $(<out/two) == two ]]
}

@test "a missing volume: nothing is touched" {
  backup
  find dest -name 000001.tar.zst -delete
  restore latest --confirm app --secrets no
  [[ ${status} == 20 && ${stderr} == *'nothing was replaced'* ]]
  run ! compgen -G 'app/*.before-*'
}

@test "the checksum recipes of README give the checksums of a manifest" {
  backup
  manifest=$(find "${PWD}/dest" -name manifest.json)
  cp "${manifest}" .
  for member in files verification; do
    case ${member} in
      files) recipe=$(grep -m1 '^jq -cS .\.files\.manifest' "${BATS_TEST_DIRNAME}/../../README.md") key=.files.checksum ;;
      *) recipe=$(grep -m1 "^jq -cS 'del(" "${BATS_TEST_DIRNAME}/../../README.md") key=.verification.total_checksum ;;
    esac
    run -0 bash -c "${recipe}"
    [[ "sha256:${output%% *}" == "$(jq -r "${key}" manifest.json)" ]]
  done
}
