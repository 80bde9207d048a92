# shellcheck shell=bash disable=SC2154,SC2034
# What restore.sh does between its questions and its end. It is sourced, and works with main's variables:
# given, id, place, secrets; kinds, trees, globals and lost are set here.

half='THE RESTORE STOPPED HALF-WAY. What it replaced was put aside; run it again, or put that back'

# Runs a step that replaces something. Its arguments are the command, a tool of bk: such a one ends with
# 2, 13, 20 and 21 before it has touched anything.
replace() {
  local code=0 before=${state}
  state=${half}
  "$@" || code=$?
  [[ ! ${code} =~ ^(2|13|20|21)$ ]] || state=${before}
  return "${code}"
}

# Says where each component goes, and sets `kinds`, `trees` and `dumps`; fails if a setting is missing.
plan() {
  local name kind place
  local -A setting=([sqlite]=BACKUP_SQLITE [postgresql]=BACKUP_POSTGRES [globals]=BACKUP_POSTGRES [archive]=BACKUP_CONFIG_FILES [tree]=BACKUP_ROOT [bucket]=BACKUP_BUCKET)
  [[ ${given["--secrets"]} != no ]] || unset 'setting[archive]'
  while read -r name kind; do
    place=${setting[${kind}]:-}
    [[ -z ${place} || -n ${!place:-} ]] || fail "no ${place} says where '${name}' (${kind}) goes"
    [[ ${place} == BACKUP_@(ROOT|BUCKET) || " ${kinds}" != *" ${kind} "* ]] \
      || fail "the backup holds several components of the kind ${kind}: fetch them with --target, see bk-dump restore --component"
    case ${place} in
      BACKUP_SQLITE)
        [[ ! -d ${!place} ]] || fail "${place} is a folder: ${!place}"
        place="to ${!place}; the one there is kept as NAME.before-TIME"
        ;;
      BACKUP_POSTGRES)
        place="to ${!place}; the one there is kept as NAME__before_TIME"
        [[ ${kind} != globals ]] || globals=${name} place='roles that the server lacks are made'
        ;;
      BACKUP_CONFIG_FILES) place="below ${root}; what is replaced is kept as NAME.before-TIME" ;;
      BACKUP_ROOT)
        [[ -d ${!place} || ! -e ${!place} ]] || fail "${place} is no folder: ${!place}"
        place="below ${!place}; what is replaced is kept in .bk-replaced-TIME/" trees+=(--component "${name}")
        ;;
      BACKUP_BUCKET) plan_bucket "${name}" ;;
      *) kind='' place='not restored' ;;
    esac
    kinds+="${kind} "
    [[ ! ${kind} =~ sql|archive|globals ]] || dumps+=(--component "${name}")
    printf 'plan         %-16s %s\n' "${name}" "${place}"
  done < <(sed -nE 's/^(components)? +([^ ]+) +([a-z]+) +(complete|partial) .*/\2 \3/p' "${work}/show" || true)
}

# Finds out whether files and buckets can be put back; replaces nothing. A disk may be too small.
check_files() {
  check_buckets
  [[ ${kinds} != *tree* ]] \
    || bk-push fetch --dry-run "${place[@]}" --target "${BACKUP_ROOT}" --into "${trees[@]}" <"${work}/manifest" >"${work}/checked"
}

# Puts back files, buckets, configuration and databases, in this order.
put_back() {
  local server=() database=() sqlite
  touch -- "${work}/mark"
  [[ -z ${stage} ]] || fetch_dumps
  check_files
  [[ ${kinds} != *archive* || ${secrets} != yes ]] || unpack_config
  if [[ ${kinds} == *postgresql* ]]; then # before anything is stopped or replaced
    server=(--url-env "${BACKUP_POSTGRES#url:}")
    [[ ${BACKUP_POSTGRES} == url:* ]] || server=(--via "${BACKUP_POSTGRES%%/*}") database=(--database "${BACKUP_POSTGRES#*/}")
    [[ -z ${globals} ]] \
      || bk-dump restore --from "${beside}" --component "${globals}" "${server[@]}" <"${work}/dumps" >"${work}/globals"
    server+=(--replace --verbose "${database[@]}") # what it plans, and what it puts aside under which name
    bk-dump restore --dry-run --from "${beside}" "${server[@]}" <"${work}/dumps" >"${work}/checked"
  fi
  stop_services
  sqlite=$(realpath -m -- "${BACKUP_SQLITE:-.}")
  if [[ ${kinds} == *sqlite* && -d ${sqlite%/*} ]]; then # now that nothing should have it open any more
    bk-dump restore --dry-run --from "${beside}" --to "${sqlite}" --replace <"${work}/dumps" >"${work}/checked"
  fi
  if [[ ${kinds} == *tree* ]]; then
    make_folder 755 "${BACKUP_ROOT}"
    replace bk-push fetch "${place[@]}" --target "${BACKUP_ROOT}" --into "${trees[@]}" <"${work}/manifest" >"${work}/files" || lose $?
    [[ ${lost} == 3 ]] || bk-verify --against "${BACKUP_ROOT}" "${trees[@]}" <"${work}/manifest" >"${work}/compared"
  fi
  put_back_buckets
  [[ ${kinds} != *archive* || ${secrets} != yes ]] || place_config
  if [[ ${kinds} == *sqlite* ]]; then
    sqlite=$(realpath -m -- "${BACKUP_SQLITE}") # now that a link to it is back
    make_folder 700 "${sqlite%/*}"
    replace bk-dump restore --from "${beside}" --to "${sqlite}" --replace <"${work}/dumps" >"${work}/restored"
  fi
  if [[ ${kinds} == *postgresql* ]]; then
    replace bk-dump restore --from "${beside}" "${server[@]}" <"${work}/dumps" >"${work}/restored" || lose $?
  fi
  state='everything was restored'
  if [[ -n ${BACKUP_MIGRATE:-} ]]; then
    state+=', but BACKUP_MIGRATE has not ended well'
    bash -c "${BACKUP_MIGRATE}" || exit 1 # its own codes mean something else
  fi
  say_aside || true # all the same it is there
}
