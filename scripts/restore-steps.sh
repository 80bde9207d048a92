# shellcheck shell=bash disable=SC2154,SC2034
# What restore.sh does between its questions and its end. It is sourced, and works with main's variables:
# given, id, place, root, env_name, secrets; kinds, trees and lost are set here.

# Says where each component goes, and sets `kinds` and `trees`; fails if a setting is missing.
plan() {
  local name kind place
  local -A setting=([sqlite]=BACKUP_SQLITE [postgresql]=BACKUP_POSTGRES [archive]=BACKUP_CONFIG_FILES [tree]=BACKUP_ROOT)
  [[ ${given["--secrets"]} != no ]] || unset 'setting[archive]'
  while read -r name kind; do
    place=${setting[${kind}]:-}
    [[ -z ${place} || -n ${!place:-} ]] || fail "no ${place} says where '${name}' (${kind}) goes"
    case ${place} in
      BACKUP_SQLITE) place="to ${!place}; the one there is kept as ${!place##*/}.before-TIME" ;;
      BACKUP_POSTGRES) place="to ${!place}, which must be new or empty: a new name in BACKUP_POSTGRES makes one" ;;
      BACKUP_CONFIG_FILES) place="below ${root}; what is replaced is kept as NAME.before-TIME" ;;
      BACKUP_ROOT) place="below ${!place}; what is replaced is kept in .bk-replaced-TIME/" trees+=(--component "${name}") ;;
      *) kind='' place='not restored' ;;
    esac
    kinds+="${kind} "
    printf 'plan         %-16s %s\n' "${name}" "${place}"
  done < <(sed -nE 's/^(components)? +([^ ]+) +([a-z]+) +(complete|partial) .*/\2 \3/p' "${work}/show" || true)
}

# Fetches the dumps beside; then puts back databases, files and configuration, and compares the files.
put_back() {
  local stamp via=() half='THE RESTORE STOPPED HALF-WAY. What it replaced was put aside; run it again, or put that back'
  local others='{[!.]*,.[!b]*,.b,.b[!k]*,.bk?*}' # all but .bk
  [[ -z ${BACKUP_ROOT:-} || -d ${BACKUP_ROOT} ]] || install -d -m 0755 -- "${BACKUP_ROOT}"
  if [[ ${kinds} =~ sql|archive ]]; then
    beside=${BACKUP_ROOT:-${BACKUP_SQLITE:-./bk}}
    beside=$(mktemp -d -- "${beside%/}.restore-XXXXXX")
    bk-push fetch "${place[@]}" --target "${beside}" --path '.bk/**' <"${work}/manifest" >"${work}/dumps"
  fi
  stop_services
  if [[ ${kinds} == *postgresql* ]]; then
    via=(--url-env "${BACKUP_POSTGRES#url:}")
    [[ ${BACKUP_POSTGRES} == url:* ]] || via=(--via "${BACKUP_POSTGRES%%/*}" --database "${BACKUP_POSTGRES#*/}")
    bk-dump restore --from "${beside}" "${via[@]}" <"${work}/dumps" >"${work}/restored"
    state=${half}
  fi
  if [[ ${kinds} == *sqlite* ]]; then
    bk-dump restore --from "${beside}" --to "${BACKUP_SQLITE}" --replace <"${work}/dumps" >"${work}/restored"
    state=${half}
  fi
  if [[ ${kinds} == *tree* ]]; then
    state=${half}
    bk-push fetch "${place[@]}" --target "${BACKUP_ROOT}" --into --path "${others}" --path "${others}/**" \
      <"${work}/manifest" >"${work}/files" || lost=$?
    [[ ${lost} == [03] ]] || exit "${lost}"
  fi
  if [[ ${kinds} == *archive* && ${secrets} == yes ]]; then
    state=${half}
    bk-dump restore --from "${beside}" --into "${beside}/config" <"${work}/dumps" >"${work}/restored"
    [[ -z ${given["--env-file"]} || -n ${given["--force-config"]} ]] || rm -f -- "${beside}/config/${env_name}"
    stamp=$(date -u +%Y%m%dT%H%M%SZ)
    tar -C "${beside}/config" -cf "${beside}/config.tar" .
    tar -C "${root}" -xpf "${beside}/config.tar" --no-overwrite-dir --backup=simple --suffix=".before-${stamp}"
  fi
  if [[ ${kinds} == *tree* && ${lost} == 0 ]]; then
    bk-verify --against "${BACKUP_ROOT}" "${trees[@]}" <"${work}/manifest" >"${work}/compared"
  fi
}
