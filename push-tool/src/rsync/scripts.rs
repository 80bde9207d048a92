//! What runs in the shell of the other host: POSIX `sh` and the programs that every system has.
//!
//! Each script is one line. What it works on comes through its standard input, a name in each line,
//! so that no name is ever part of a command. It prints one word first, then what was asked for;
//! what fails says so on its standard error.

/// Goes to the root, whose name is the first line. `enter FOLDER` goes to a folder below it and
/// returns 1 if there is none, 2 if a link is in its way: then the folder's real name is another one.
macro_rules! root {
    () => {
        concat!(
            "LC_ALL=C; export LC_ALL; unset CDPATH; umask 077; set -C; IFS= read -r root || exit 1; ",
            "enter() { cd \"$top/\" || exit 1; [ -n \"$1\" ] || return 0; ",
            "if [ ! -d \"./$1\" ]; then case $(ls -d \"./$1\" 2>&1) in ",
            "*[Pp]'ermission denied'*) echo \"Permission denied: $1\" >&2; exit 1 ;; esac; return 1; fi; ",
            "cd \"./$1\" || exit 1; [ \"$(pwd -P)\" = \"$top/$1\" ] || return 2; }; ",
            "fail() { echo \"$1\" >&2; exit 1; }; link() { fail 'a symbolic link is in the place of a ",
            "folder; it is not followed'; }; ",
        )
    };
}

/// Goes in, or says that there is no root.
macro_rules! go {
    () => {
        concat!(
            "[ -d \"$root\" ] || { e=$(ls -d \"$root\" 2>&1); case $e in *[Pp]'ermission denied'*) fail \"$e\" ;; ",
            "esac; echo gone; exit 0; }; cd \"$root\" || exit 1; top=$(pwd -P); [ \"$top\" != / ] || top=; "
        )
    };
}

/// Makes a file the input of what follows, and says `ok`; or says that there is none.
macro_rules! open {
    () => {
        concat!(
            "enter \"$folder\"; case $? in 1) echo missing; exit 0 ;; 2) link ;; esac; ",
            "[ ! -L \"./$last\" ] || link; [ -f \"./$last\" ] || { echo missing; exit 0; }; ",
            "exec <\"./$last\" || exit 1; echo ok; ",
        )
    };
}

/// `make FOLDER` goes to a folder and makes it and those above it where they are missing.
macro_rules! make {
    () => {
        concat!(
            "flush() { e=$(sync . 2>&1) || case $e in *nvalid*|*upported*) ;; *) fail \"$e\" ;; esac; }; ",
            "make() { cd \"$top/\" || exit 1; rest=$1; while [ -n \"$rest\" ]; do part=${rest%%/*}; ",
            "case $rest in */*) rest=${rest#*/} ;; *) rest= ;; esac; ",
            "if [ ! -d \"./$part\" ]; then if mkdir -m 700 \"./$part\" 2>/dev/null; then flush; ",
            "elif [ ! -d \"./$part\" ]; then mkdir -m 700 \"./$part\" || exit 1; fi; fi; ",
            "[ ! -L \"./$part\" ] || link; cd \"./$part\" || exit 1; done; ",
            "[ \"$(pwd -P)\" = \"$top${1:+/$1}\" ] || link; }; ",
        )
    };
}

/// `name FILE FOLDER LAST` gives a file that is written a name that nothing has. A link takes no name
/// that is taken; where there are no links, `mv -n` does nearly that.
macro_rules! name {
    () => {
        concat!(
            "name() { make \"$2\"; ",
            "if [ -e \"./$3\" ] || [ -L \"./$3\" ]; then [ \"$1\" -ef \"./$3\" ] || { echo taken; exit 0; }; ",
            "elif e=$(ln \"$1\" \"./$3\" 2>&1); then :; ",
            "elif [ -e \"./$3\" ] || [ -L \"./$3\" ]; then echo taken; exit 0; ",
            "else mv -n \"$1\" \"./$3\" 2>/dev/null || fail \"$e\"; ",
            "[ ! -e \"$1\" ] || { echo taken; exit 0; }; fi; flush; }; ",
            "clean() { cd / && rm -f -- \"$file\"; }; trap clean EXIT; trap 'exit 1' HUP INT TERM PIPE; ",
            "whole() { [ \"$(wc -c <\"$1\")\" -eq \"$2\" ] || fail 'the connection was cut'; }; ",
        )
    };
}

/// Says where the login's home is, an empty line if there is none, and which programs are there.
pub(super) const PROBE: &str = "echo ok; (cd && pwd -P) 2>/dev/null || echo; for p in find ln ls mv rm mkdir rmdir sync \
    wc cat tail head; do command -v $p >/dev/null || echo no $p; done; \
    command -v rsync >/dev/null && echo rsync; command -v sha256sum >/dev/null && echo sha256sum; \
    find / -maxdepth 0 -ignore_readdir_race -printf 'times\\n' 2>/dev/null; echo end";

/// Reads the folder and the last part of a name; prints `ok`, its size and time.
pub(super) const STAT: &str = concat!(
    root!(),
    go!(),
    "IFS= read -r folder; IFS= read -r last; enter \"$folder\" || { echo missing; exit 0; }; ",
    "[ -e \"./$last\" ] || { echo missing; exit 0; }; echo ok; ",
    "find \"./$last\" -prune -type f -printf '%s %T@ \\0'"
);

/// Reads a folder; prints `ok` and a record for every file below it.
pub(super) const LIST: &str = concat!(
    root!(),
    go!(),
    "IFS= read -r folder; enter \"$folder\"; case $? in 1) echo missing; exit 0 ;; 2) link ;; esac; echo ok; ",
    "if [ -n \"$folder\" ]; then find . -ignore_readdir_race -type f -printf '%s %T@ %P\\0'; else ",
    "find . -ignore_readdir_race \\( -path ./.bk/tmp -o -path ./lost+found \\) -prune ",
    "-o -type f -printf '%s %T@ %P\\0'; fi"
);

/// Reads the folder and the last part of a name, from which byte (the first is 1) and how many, or
/// `all`; prints `ok` and the bytes.
pub(super) const READ: &str = concat!(
    root!(),
    go!(),
    "IFS= read -r folder; IFS= read -r last; read -r from; read -r count; ",
    open!(),
    "[ \"$count:$from\" != all:1 ] || exec cat; [ \"$count\" != all ] || exec tail -c \"+$from\"; ",
    "tail -c \"+$from\" | head -c \"$count\""
);

/// Reads the folder and the last part of a name; prints `ok` and what `sha256sum` says of it.
pub(super) const CHECKSUM: &str =
    concat!(root!(), go!(), "IFS= read -r folder; IFS= read -r last; ", open!(), "sha256sum");

/// Reads the folder and the last part of a name, one for the unfinished file, the size, whether the
/// root may be made, then the bytes; prints `ok` or `taken`.
pub(super) const CREATE: &str = concat!(
    root!(),
    "IFS= read -r folder; IFS= read -r last; IFS= read -r unfinished; read -r size; read -r root_too; ",
    "[ -d \"$root\" ] || [ \"$root_too\" != yes ] || mkdir -m 700 \"$root\" || exit 1; ",
    go!(),
    make!(),
    name!(),
    "make .bk/tmp; file=$top/.bk/tmp/$unfinished; cat >\"$file\" || exit 1; whole \"$file\" \"$size\"; ",
    "chmod 600 \"$file\" && sync \"$file\" || exit 1; name \"$file\" \"$folder\" \"$last\"; echo ok"
);

/// Prints `ok` once the folder of what is unfinished is there.
pub(super) const PREPARE: &str = concat!(root!(), go!(), make!(), "make .bk/tmp; echo ok");

/// Reads the folder and the last part of a name, that of an unfinished file that rsync has sent, the
/// size; prints `ok`, `taken`, or `lost` where that file is not there.
pub(super) const FINISH: &str = concat!(
    root!(),
    "IFS= read -r folder; IFS= read -r last; IFS= read -r unfinished; read -r size; ",
    go!(),
    make!(),
    name!(),
    "trap 'clean; rmdir \"${file%/*}\" 2>/dev/null' EXIT; file=$top/$unfinished; [ -f \"$file\" ] || { file=; echo lost; exit 0; }; ",
    "[ ! -L \"$file\" ] || link; whole \"$file\" \"$size\"; ",
    "chmod 600 \"$file\" && sync \"$file\" || exit 1; name \"$file\" \"$folder\" \"$last\"; echo ok"
);

/// Reads lines `dFOLDER`, each with its `fNAME` behind it; prints `ok`, and a line with the number
/// and the cause for each name that stays. Folders that became empty go.
pub(super) const DELETE: &str = concat!(
    root!(),
    go!(),
    "echo ok; state=1; n=0; leave() { if [ \"$state\" = 0 ]; then sync . 2>/dev/null; cd \"$top/\" || exit 1; ",
    "case $folder in ''|.bk/tmp) ;; .bk/tmp/*) rmdir \"./$folder\" 2>/dev/null ;; ",
    "*) rmdir -p \"./$folder\" 2>/dev/null ;; esac; fi; }; ",
    "while IFS= read -r line; do case $line in d*) leave; folder=${line#d}; enter \"$folder\"; state=$? ;; ",
    "f*) n=$((n+1)); case $state in 0) e=$(rm -f -- \"./${line#f}\" 2>&1) || printf '%s %s\\n' \"$n\" \"$e\" ;; ",
    "2) printf '%s %s\\n' \"$n\" 'a symbolic link is in the place of a folder' ;; esac ;; esac; done; leave; :"
);

/// Reads a name for an unfinished file; prints `ok` and the time of a file that is made now.
pub(super) const NOW: &str = concat!(
    root!(),
    go!(),
    make!(),
    "IFS= read -r unfinished; make .bk/tmp; echo >\"./$unfinished\" || exit 1; ",
    "trap 'rm -f -- \"./$unfinished\"' EXIT; echo ok; find \"./$unfinished\" -prune -printf '%T@'"
);
