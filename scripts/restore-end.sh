# shellcheck shell=bash disable=SC2154,SC2034
# What restore.sh says at its end. It is sourced, and works with the variables of main: lost, root.

# Goes on after a step that could not bring back everything, and ends after any other. $1: its code
lose() {
  lost=$1
  [[ ${lost} == 3 ]] || exit "${lost}"
}

# Names what was put aside since `mark` was made, in one line.
say_aside() {
  local names=() folder
  [[ -e ${work}/mark ]] || return 0
  folder=$(dirname -- "$(realpath -m -- "${BACKUP_SQLITE:-.}" || true)")
  # shellcheck disable=SC2312 # what cannot be named is there all the same
  {
    [[ -z ${BACKUP_ROOT:-} ]] || find "${BACKUP_ROOT}" -maxdepth 1 -newercm "${work}/mark" -name '.bk-replaced-*' || true
    [[ -z ${BACKUP_SQLITE:-} ]] || find "${folder}" -maxdepth 1 -newercm "${work}/mark" -name '*.before-*' || true
    [[ ! -e ${work}/unpacked ]] || sed -n "s|^Renaming .* to ['\`]\./\(.*\)'\$|\1|p" "${work}/unpacked" \
      | xargs -rd '\n' -I{} printf '%s\n' "${root%/}/{}"
  } 2>/dev/null | sort -u >"${work}/aside"
  mapfile -t names <"${work}/aside"
  ((${#names[@]} == 0)) || printf 'put aside    %s\n' "${names[*]@Q}"
  rm -- "${work}/mark"
}

# Says what was done and what of it is missing, and ends. $1: what was done, $2: the kinds that it concerns
end() {
  local partial missing done=$1
  state='everything was restored'
  partial=$(sed -nE "s/^(components)? +([^ ]+) +(${2// /|}) +partial .*/\\2/p" "${work}/show")
  missing=$(sed -nE 's/^(left out)? +([0-9]+ (unreadable|changed while read|unnameable): .*)/\2/p' "${work}/show")
  [[ ${lost}${partial} != 0 ]] || { printf 'restore.sh: ok %s\n' "${done}" && exit 0; }
  [[ ${lost} == 0 ]] || done+=', without what is listed above'
  [[ -z ${partial} ]] || done+="; but the backup itself is partial: ${partial//$'\n'/ }${missing:+ (${missing//$'\n'/; })}"
  printf 'restore.sh: %s\n' "${done}"
  exit 3
}
