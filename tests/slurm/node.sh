#!/bin/bash
# Makes a host of tests/fleet a node of Slurm; the first host gets slurmctld, too. All of it ends with the host.
#
#   node.sh DIRECTORY ROOM PYTHON    DIRECTORY has slurm.conf, gres.conf, hosts and munge.key, ROOM is the size of the hugetlbfs
set -eu
dir=$1 room=$2 python=$3
repository=$(realpath "$(dirname "$0")/../..")
mkdir -p /run/slurm/ctld /run/slurm/d /run/munge
mount -t tmpfs none /etc/slurm
cp "$dir/slurm.conf" "$dir/gres.conf" /etc/slurm
echo CgroupPlugin=cgroup/v1 >/etc/slurm/cgroup.conf # it refuses to guess where both versions are mounted
mount --bind "$dir/hosts" /etc/hosts
mount -t hugetlbfs -o "pagesize=2M,size=$room,mode=1777" none /dev/hugepages
mount -t tmpfs -o mode=755 none /usr/local/sbin # ktaskfs is installed
printf '#!/bin/sh\nPYTHONPATH=%s exec %s -m ktaskfs.cli.main "$@"\n' "$repository" "$python" >/usr/local/sbin/ktaskfs
chmod 755 /usr/local/sbin/ktaskfs
install -m 600 "$dir/munge.key" /run/munge/key
munged --force --key-file=/run/munge/key --log-file=/run/munge/log --seed-file=/run/munge/seed
[ "$(hostname)" != hv1 ] || slurmctld
slurmd
