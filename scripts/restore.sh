#!/usr/bin/env bash
# Restores one application from a backup: databases, files and, if wanted, its configuration.
#
# usage: restore.sh [--env-file FILE]                       lists the backups
#        restore.sh [--env-file FILE] ID|latest [options]   restores one
#   --confirm NAME     answers the question for the application's name
#   --secrets yes|no   answers the question whether to restore the configuration
#   --force-config     with --secrets yes: replaces the env file too
#   --dry-run          says what would be done, and touches nothing
#   --copy             from the second destination, BACKUP_COPY_DESTINATION_PATH
#   --delete-strangers removes from the application's buckets what the backup does not have
#   --target DIR       only fetches all of it into DIR, which is new or empty
# What is replaced is put aside first, but for objects of a bucket. BK_BIN_DIR names the folder of the tools.
# exit codes: the table in README.md; with 2 nothing was touched, with 3 what is listed was lost
here=$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}" || true)")
# shellcheck source=scripts/common.sh
source "${here}/common.sh"
# shellcheck source=scripts/restore-steps.sh
source "${here}/restore-steps.sh"
# shellcheck source=scripts/restore-stage.sh
source "${here}/restore-stage.sh"
# shellcheck source=scripts/restore-buckets.sh
source "${here}/restore-buckets.sh"
# shellcheck source=scripts/restore-config.sh
source "${here}/restore-config.sh"
# shellcheck source=scripts/restore-end.sh
source "${here}/restore-end.sh"

# Sets `answer` to a line from the terminal. $1: the question, $2: the option that answers it.
ask() {
  [[ -t 0 ]] || { exec </dev/tty; } 2>/dev/null || fail "there is no terminal to ask on; answer with $2"
  read -r -p "$1 " answer || answer=''
}

main() {
  local id='' place=() kinds='' globals='' trees=() dumps=() answer lost=0 secrets app from=BACKUP_DESTINATION_PATH settings=()
  local -A given=(["--env-file"]='' ["--confirm"]='' ["--secrets"]='' ["--target"]='' ["--force-config"]='' ["--dry-run"]='' ["--copy"]='' ["--delete-strangers"]='')
  while (($#)); do
    case $1 in
      --force-config | --dry-run | --copy | --delete-strangers) given[$1]=yes ;;
      --env-file | --confirm | --secrets | --target)
        (($# > 1)) || fail "$1 needs a value"
        given[$1]=$2 && shift
        ;;
      -h | --help) sed -n '2,/^# exit/s/^# \{0,1\}//p' "$0" && exit 0 ;;
      -*) fail "unknown option '$1', see --help" ;;
      *)
        [[ -z ${id} ]] || fail "one backup is wanted, not '${id}' and '$1'"
        id=$1
        ;;
    esac
    shift
  done
  [[ -z ${given["--env-file"]} ]] || settings+=(--env-file "${given["--env-file"]}")
  [[ -z ${id} || -n ${given["--target"]} ]] || settings+=(--require BACKUP_APP)
  [[ -z ${given["--copy"]} ]] || from=BACKUP_COPY_DESTINATION_PATH
  begin "${settings[@]}" --require "${from}"
  place=(--from "${!from}")
  [[ -z ${given["--copy"]} ]] || place+=(--access BACKUP_COPY)
  if [[ -z ${id} ]]; then
    bk-push list "${place[@]}"
    echo 'restore one of them: restore.sh ID, or restore.sh latest' && exit 0
  fi
  state='nothing was replaced' before_end=say_aside
  bk-push manifest "${id}" "${place[@]}" >"${work}/manifest"
  bk-verify "${place[@]}" --level present <"${work}/manifest" >"${work}/verified"
  bk-manifest show "${work}/manifest" | tee "${work}/show"
  if [[ -n ${given["--target"]} ]]; then
    [[ -z ${given["--dry-run"]} ]] || exit 0
    bk-push fetch "${place[@]}" --target "${given["--target"]}" <"${work}/manifest" >"${work}/fetched" || lose $?
    end "fetched into ${given["--target"]}" '[a-z]+'
  fi
  app=${BACKUP_APP:-}
  grep -Eq "^application  ${app//./[.]}( |\$)" "${work}/show" || fail "this is no backup of ${app}"
  choose_root
  plan
  choose_stage
  if [[ -n ${given["--dry-run"]} ]]; then
    check_stage
    check_files
    exit 0
  fi
  answer=${given["--confirm"]}
  [[ -n ${answer} ]] || ask "Type the application's name to go on:" '--confirm NAME'
  [[ ${answer} == "${app}" ]] || fail "'${answer}' is not the application's name; nothing was touched"
  answer=${given["--secrets"]}
  [[ -n ${answer} || ${kinds} != *archive* ]] || ask 'Restore configuration and secrets too?' '--secrets yes|no'
  [[ ${answer} =~ ^(yes|no|)$ ]] || fail "'${answer}' is neither yes nor no; nothing was touched"
  secrets=${answer:-no}
  id=$(sed -n 's/^backup *\([^ ]*\).*/\1/p' "${work}/show")
  hold_lock -x
  put_back
  [[ ${secrets} == yes ]] || kinds=${kinds//archive /}
  end "${id} is restored" "${kinds}"
}

main "$@"
