# shellcheck shell=bash
# The programs that the tests need. It is sourced by test.sh.
# shellcheck source=scripts/packages.sh
source "${here:?}/packages.sh"

# Installs what is missing, and starts none of the servers.
prepare() {
  local server=(/usr/lib/postgresql/*/bin/postgres) settings=/etc/postgresql-common/createcluster.conf
  if [[ ! -e ${server[0]} ]]; then
    # Debian's package would make a server of its own and start it; nobody asked for that one.
    need "${settings}" postgresql-common 'holds the setting that keeps Debian from starting a server'
    install_missing
    printf 'create_main_cluster = false # test.sh\n' | "${as_root[@]}" tee -a "${settings}" >/dev/null
  fi
  if [[ ! -e /usr/sbin/sshd ]]; then
    # Debian's package would start an ssh server for everyone, now and at every boot; this file forbids it.
    "${as_root[@]}" mkdir -p /etc/ssh
    "${as_root[@]}" touch /etc/ssh/sshd_not_to_be_run
  fi
  if [[ ! -e /usr/bin/ceph-crash ]]; then
    # All that Debian's packages of Ceph would start: what reports crashes of daemons that are not there.
    "${as_root[@]}" mkdir -p /etc/systemd/system
    "${as_root[@]}" ln -sfn /dev/null /etc/systemd/system/ceph-crash.service
  fi
  need /usr/sbin/sshd openssh-server 'an ssh server of the tests'\'' own; Debian'\''s stays off (/etc/ssh/sshd_not_to_be_run)'
  need ssh openssh-client 'reaches it'
  need rsync rsync 'sends backups to another host'
  need /usr/bin/rrsync rsync 'an account that may run nothing but rsync'
  need cc gcc 'the linker; parts of SQLite and zstd are C'
  need /usr/include/stdlib.h libc6-dev 'what gcc links against'
  need "${server[0]}" postgresql 'a server of the tests'\'' own, and pg_dump'
  need /usr/sbin/pgbouncer pgbouncer 'a pooler, which a dump must notice'
  need radosgw radosgw 'an object store of the tests'\'' own'
  need ceph-mon ceph-mon 'what that store stands on'
  need ceph-osd ceph-osd 'and keeps its objects in'
  need faketime faketime 'gives a program a clock that is wrong'
  need curl curl 'asks the store as a stranger would'
  need rclone rclone 'copies a bucket here, as the recovery sheet says'
  need sqlite3 sqlite3 'makes and reads databases'
  need jq jq 'reads manifests as a person would'
  need age age 'encrypts backups and opens them'
  need gpg gnupg 'does the same'
  need zstd zstd 'unpacks backups where bk is not there'
  need bsdtar libarchive-tools 'reads our volumes as another program'
  need python3 python3 'its tarfile reads our volumes, too'
  need strace strace 'shows what is written to the disk before what'
  need bats bats 'runs the tests of the scripts'
  need docker docker.io 'runs a database in a container'
  need docker-compose docker-compose 'starts it as an application would'
  install_missing
  need docker docker-cli 'its client, which since Debian 13 has a package of its own'
  install_missing
  [[ -e ${server[0]} ]] || "${as_root[@]}" sed -i '/# test.sh$/d' "${settings}"
}
