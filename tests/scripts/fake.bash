#!/usr/bin/env bash
# Stands for every tool, and for docker, in the tests of the scripts: it notes how it was called, and
# ends as the test says. FAKE is a folder:
#   calls           one line a call
#   settings        what `bk-manifest settings` prints, a line each
#   show            what `bk-manifest show` prints
#   codes/STEP      the exit code of a step, such as `bk-dump-sqlite` or, for the second destination,
#                   `bk-prune-copy`; `early CODE` reads no document
#   first           if it is there, the destination holds no backup yet
#   rules-STEP      the rules that a step of bk-prune was given
# Like the real tools, a filter whose document is not ended ends with 21.
# shellcheck disable=SC2154,SC2312 # FAKE is of the test; an empty document is told from an ended one
set -euo pipefail

[[ $* != 'compose version' ]] || exit 0
[[ $* != *'ps -aq '* ]] || { echo 0123456789ab && exit 0; }
tool=${0##*/}
step=${tool}
[[ -z ${1:-} || $1 == -* ]] || step+=-$1
[[ $* != *--dry-run* ]] || step+=-dry-run
[[ ! ${tool} =~ verify|prune || $* != *'--access BACKUP_COPY'* ]] || step+=-copy
printf '%s %s\n' "${tool}" "$*" >>"${FAKE}/calls"
code=0
[[ ! -e ${FAKE}/codes/${step} ]] || code=$(<"${FAKE}/codes/${step}")

case ${step} in
  bk-manifest-settings)
    [[ $* != *--sheet* ]] || exec echo '# RECOVERY SHEET'
    tr '\n' '\0' <"${FAKE}/settings"
    exit "${code}"
    ;;
  bk-manifest-show) cat "${FAKE}/show" ;;
  bk-push-list | docker-compose*) exit "${code}" ;;
  bk-manifest-new | bk-push-manifest)
    [[ ${code} == [03] ]] || exit "${code}"
    [[ ${tool} != bk-push || ! -e ${FAKE}/first ]] || echo '"backup":null,'
    echo END
    exit "${code}"
    ;;
  *)
    [[ ${code} != early* ]] || exit "${code#early }"
    [[ $(cat) == END ]] || exit 21
    [[ ${code} == [03] ]] || exit "${code}"
    case $* in
      *'--into'*config*) mkdir -p "${!#}" ;;
      *) ;;
    esac
    [[ ${tool} != bk-prune ]] || env | grep -E '^BACKUP_(KEEP|RETENTION)' | sort >"${FAKE}/rules-${step}" || true
    [[ ${tool} != bk-prune ]] || echo 'bk-prune: kept 3, marked 0, removed 1, freed 2 KiB' >&2
    echo END
    exit "${code}"
    ;;
esac
