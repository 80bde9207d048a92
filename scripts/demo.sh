#!/usr/bin/env bash
# Shows bk at work, on an application that it makes in a temporary folder and loses again: backup,
# incremental backup, prune, loss, restore, proof. Nothing outside that folder is touched.
#
# usage: demo.sh
# exit codes: 0 everything came back equal; anything else, it did not
set -Eeuo pipefail
shopt -s inherit_errexit
export LC_ALL=C
here=$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}" || true)")
# shellcheck source=scripts/packages.sh
source "${here}/packages.sh"

# Makes an application: a database, files with names that scripts get wrong, a secret.
make_application() {
  mkdir -p app/files/events/wedding 'app/files/empty folder' app/secrets
  sqlite3 app/app.db "PRAGMA journal_mode = wal; CREATE TABLE photos (id INTEGER PRIMARY KEY, name TEXT, likes INTEGER);
    WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 10000)
    INSERT INTO photos SELECT i, printf('DSC_%05d.jpg', i), i % 7 FROM n" >/dev/null
  local index
  for index in {1..200}; do head -c "$((index * 500))" /dev/urandom >"app/files/events/wedding/DSC_${index}.jpg"; done
  head -c 3000000 /dev/zero >app/files/video.mp4
  printf x | tee 'app/files/-rf *' $'app/files/two\nlines' $'app/files/caf\xe9' "app/files/it's \"quoted\" \$HOME" >/dev/null
  ln -s ../video.mp4 app/files/events/link && ln -s /nowhere app/files/dangling
  ln app/files/video.mp4 app/files/events/same.mp4
  printf 'key of the demo\n' >app/secrets/key && chmod 600 app/secrets/key
}

# What an application does between two backups.
change_application() {
  local photos=app/files/events/wedding
  sqlite3 app/app.db 'DELETE FROM photos WHERE likes = 3; UPDATE photos SET likes = 99 WHERE id < 100' >/dev/null
  printf 'edited' >>"${photos}/DSC_1.jpg" && mv "${photos}/DSC_2.jpg" app/files/renamed.jpg
  cp "${photos}/DSC_3.jpg" app/files/copy.jpg && rm "${photos}/DSC_4.jpg" && chmod 400 "${photos}/DSC_5.jpg"
  ln "${photos}/DSC_6.jpg" app/files/new-link.jpg && touch app/files/new
}

# Prints all that is to come back: type, mode, owner, links, target, time and content of every path; every row.
describe() {
  find app/files -name .bk -prune -o -type d -printf '%p %y %m %U:%G\n' -o -printf '%p %y %m %U:%G %n %T@ %l\n' | sort
  find app/secrets -printf '%p %y %m %U:%G\n' | sort
  find app/files app/secrets -name .bk -prune -o -type f -print0 | sort -z | xargs -0 sha256sum --
  sqlite3 app/app.db 'SELECT * FROM photos ORDER BY id'
}

main() {
  need cc gcc 'the linker; parts of SQLite and zstd are C'
  need /usr/include/stdlib.h libc6-dev 'what gcc links against'
  need sqlite3 sqlite3 'makes the database of the application of the demo'
  install_missing
  if [[ -z ${BK_BIN_DIR:-} ]]; then
    # The dev profile builds in half the time of the release one, and optimises hashing and zstd too.
    echo 'Building the five tools with cargo; the first time takes some minutes:'
    cargo build --locked --workspace --bins --manifest-path "${here}/../Cargo.toml"
    BK_BIN_DIR=$(cargo metadata --locked --no-deps --format-version 1 --manifest-path "${here}/../Cargo.toml" \
      | sed 's/.*"target_directory":"\([^"]*\)".*/\1/')/debug
  fi
  demo=$(mktemp -d) && trap 'rm -rf -- "${demo}"' EXIT
  cd -- "${demo}"
  # Nothing that is set for a real application counts here.
  for setting in "${!BACKUP_@}" "${!BK_STAGE@}"; do unset "${setting}"; done
  export BK_BIN_DIR XDG_STATE_HOME=${demo}/state PATH=${BK_BIN_DIR}:${PATH}
  make_application
  printf 'BACKUP_%s\n' APP=demo "DESTINATION_PATH=${demo}/backups" "SQLITE=${demo}/app/app.db" "ROOT=${demo}/app/files" \
    CONFIG_FILES=app/secrets KEEP_LAST=1 >demo.env && chmod 600 demo.env

  echo "1. An application: a SQLite database of 10,000 rows; $(find app/files -printf . | wc -c || true) files and folders, some with awkward names; a secret key."
  bk-push init --to backups --grace 0s
  echo '2. Its first backup; it also prints a recovery sheet, to keep elsewhere:'
  "${here}/backup.sh" --env-file demo.env | sed -n '1p;$p'
  echo '3. The application goes on: rows and files are added, edited, renamed, copied, deleted, linked, made read-only.'
  change_application
  describe >before
  echo '4. The second backup stores what is new. One is kept, so prune removes the first, but not what the second needs of it:'
  "${here}/backup.sh" --env-file demo.env
  find backups -name '*.zst' -printf '   %P\n' | sort
  echo '5. The disk dies: database, files and key are gone.'
  rm -rf app
  echo '6. The restore:'
  "${here}/restore.sh" --env-file demo.env latest --confirm demo --secrets yes >restore.log
  sed -n '/^plan/p;/^restore/p' restore.log
  describe >after
  diff before after || { echo 'demo.sh: what came back differs, see above' && exit 1; }
  lines=$(wc -l <before)
  echo '7. Proof: bk-verify has compared every file with the manifest. And find, sha256sum and sqlite3 were asked for'
  echo "   every path, mode, time, content and row before the loss and after the restore: ${lines} lines, all equal."
}

main "$@"
