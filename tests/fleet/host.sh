#!/bin/bash
# What runs as PID 1 of a host: in namespaces of its own (network, mounts, processes, names), with ktaskfs on
# /run/ktaskfs and sshd on its address. It lives as long as its standard input is open; nothing is left of it.
#
#   host.sh NAME DIRECTORY SIZE PYTHON    DIRECTORY has sshd_config and keys, SIZE is that of /dev/shm
set -eu
name=$1 dir=$2 size=$3 python=$4
hostname "$name"
mount --make-rprivate /
mount -t proc proc /proc
mount -t tmpfs -o mode=755 none /run
mount -t tmpfs -o "mode=1777,size=$size" none /dev/shm
mkdir /run/sshd /run/ktaskfs /run/state
sed 's/^root:[^:]*:/root:*:/' /etc/shadow >/run/shadow # sshd lets nobody in who is locked
chmod 600 /run/shadow
mount --bind /run/shadow /etc/shadow
ip link set lo up
"$python" -m ktaskfs.cli.main mount --foreground -o statedir=/run/state /run/ktaskfs </dev/null &
until "$python" -m ktaskfs.cli.main ls >/dev/null 2>&1; do
    kill -0 $!
    sleep 0.05
done
until ip -4 address show dev eth0 2>/dev/null | grep -q inet; do sleep 0.05; done
/usr/sbin/sshd -D -e -f "$dir/sshd_config" </dev/null &
echo ready >&3
cat >/dev/null
