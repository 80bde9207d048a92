#!/usr/bin/env bash
# Measures bk beside whichever of restic, rclone (for buckets) and tar with zstd (for folders) are installed: a full
# backup, one of the same files again, all of it back (which is compared with ROOT), a check of every stored byte. One
# after another, each in a folder or prefix of its own below DEST; all of them are removed in the end. Seconds are those of
# this machine, these files and this destination, so every line also has the ratio to bk's.
#
# usage: benchmark.sh ROOT DEST    DEST: a folder, or s3://BUCKET/PREFIX, reached as README says ('Where to')
# It takes the tools on PATH; BK_BIN_DIR can name the folder with those of bk. Needs GNU time; rclone for a bucket.
# exit codes: 0 it was measured; 1 a step failed; 2 wrong command line, or a program is missing
set -Eeuo pipefail
shopt -s inherit_errexit
export LC_ALL=C

fail() {
  printf 'benchmark.sh: %s\n' "$1" >&2
  exit 2
}

# What a tool does in a step, for a shell of its own. $1: the tool, $2: the step
# shellcheck disable=SC2016 # expanded by that shell
command_of() {
  case $1-$2 in
    bk-full | bk-unchanged) echo 'bk-push manifest latest --or-none --app benchmark --from "${dest}/bk" >"${work}/parent.json"
      bk-manifest new --app benchmark --parent "${work}/parent.json" |
        bk-manifest add --root "${root}" | bk-push --to "${dest}/bk" >"${work}/stored.json"' ;;
    bk-back) echo 'bk-push fetch --from "${dest}/bk" --target "${back}" <"${work}/stored.json" >/dev/null' ;;
    bk-check) echo 'bk-verify --from "${dest}/bk" --level content <"${work}/stored.json" >/dev/null' ;;
    restic-full | restic-unchanged) echo 'cd "${root}" && restic --quiet backup .' ;;
    restic-back) echo 'restic --quiet restore latest --target "${back}"' ;;
    restic-check) echo 'restic --quiet check --read-data' ;;
    rclone-full | rclone-unchanged) echo 'rclone copy --links "${root}" "${remote}/rclone"' ;;
    rclone-back) echo 'rclone copy --links "${remote}/rclone" "${back}"' ;;
    rclone-check) echo 'rclone check --links --download "${root}" "${remote}/rclone"' ;;
    tar-full | tar-unchanged) echo 'tar -C "${root}" -cf - . | zstd -q -f -T0 -o "${dest}/tar.zst"' ;;
    tar-back) echo 'zstd -dcq "${dest}/tar.zst" | tar -C "${back}" -xpf -' ;;
    tar-check) echo 'zstd -q -t "${dest}/tar.zst"' ;;
    *) return 1 ;;
  esac
}

# Runs a step of a tool and prints its line. $1: the tool, $2: the step; `wall` is that of bk
measure() {
  local script measured line
  script=$(command_of "$1" "$2")
  rm -rf -- "${back}" && mkdir -- "${back}"
  "${time}" -f '%e %U %S %M' -o "${work}/time" bash -eo pipefail -c "${script}" >"${work}/log" 2>&1 </dev/null || {
    cat -- "${work}/log" >&2
    printf 'benchmark.sh: %s failed: %s\n' "$1" "$2" >&2
    exit 1
  }
  read -ra measured <"${work}/time"
  [[ $1 != bk ]] || wall=${measured[0]}
  line=$(awk -v wall="${wall}" '{ printf "%9.1f %9.1f %9.0f %9.2f", $1, $2 + $3, $4 / 1024, $1 / (wall + 0 ? wall : 0.01) }' \
    <"${work}/time")
  printf '%-10s %-8s %s\n' "$2" "$1" "${line}"
  [[ $2 != back ]] || diff -r --no-dereference --exclude .bk -- "${root}" "${back}" || fail "$1 brought something else back"
}

# Says how restic and rclone reach the bucket that the settings of bk name.
reach_bucket() {
  local url=${BACKUP_S3_ENDPOINT:-https://s3.amazonaws.com} scheme=https
  [[ ${BACKUP_S3_SSL_ENABLED:-true} == true ]] || scheme=http
  url=${scheme}://${url#*://}
  AWS_ACCESS_KEY_ID=${BACKUP_S3_ACCESS_KEY:-${AWS_ACCESS_KEY_ID:-}}
  AWS_SECRET_ACCESS_KEY=${BACKUP_S3_SECRET_KEY:-${AWS_SECRET_ACCESS_KEY:-}}
  remote=":s3,provider=Other,env_auth=true,no_check_bucket=true,endpoint='${url}',region='${BACKUP_S3_REGION:-us-east-1}':${dest#s3://}"
  RESTIC_REPOSITORY=s3:${url}/${dest#s3://}/restic
  export AWS_ACCESS_KEY_ID AWS_SECRET_ACCESS_KEY AWS_DEFAULT_REGION=${BACKUP_S3_REGION:-us-east-1}
}

clean() {
  if [[ -n ${remote} ]]; then
    rclone purge "${remote}" || printf 'benchmark.sh: %s is left\n' "${dest}" >&2
  else
    rm -rf -- "${dest}"
  fi
  rm -rf -- "${work}"
}

main() {
  local tools=(bk) tool step wall=0
  [[ $# == 2 && -d $1 ]] || fail 'usage: benchmark.sh ROOT DEST, where ROOT is a folder'
  PATH=${BK_BIN_DIR:+${BK_BIN_DIR}:}${PATH}
  command -v bk-push >/dev/null || fail 'bk-push is not on PATH; BK_BIN_DIR can name its folder'
  time=$(type -P time) || fail 'GNU time is missing'
  work=$(mktemp -d) remote=''
  root=$(readlink -f -- "$1") dest=${2%/}/bk-benchmark-${work##*.} back=${work}/back RESTIC_REPOSITORY=''
  if [[ $2 == s3://* ]]; then
    command -v rclone >/dev/null || fail 'rclone is missing; it also removes what is stored'
    reach_bucket
    tools+=(rclone)
  else
    dest=$(readlink -f -- "$2")/bk-benchmark-${work##*.}
    mkdir -- "${dest}" "${dest}/bk" && RESTIC_REPOSITORY=${dest}/restic && tools+=(tar)
  fi
  trap clean EXIT
  export root dest back work remote RESTIC_REPOSITORY RESTIC_PASSWORD=benchmark RESTIC_CACHE_DIR=${work}/cache RCLONE_CONFIG=''
  bk-push init --quiet --to "${dest}/bk"
  ! command -v restic >/dev/null || { restic --quiet init >/dev/null && tools+=(restic); }
  find "${root}" -type f -exec cat -- {} + >/dev/null
  printf '%-10s %-8s %9s %9s %9s %9s\n' step tool 'wall s' 'CPU s' 'peak MiB' 'wall/bk'
  for step in full unchanged back check; do
    for tool in "${tools[@]}"; do measure "${tool}" "${step}"; done
  done
}

main "$@"
