#!/bin/sh
# Proves that a clone needs nothing but Debian, make and git: runs make in a copy of this system without the
# packages that scripts/setup.sh installs and all that depends on them, without package lists, without a venv, in a
# fresh clone of HEAD.
# The copy is an overlay whose changes lie in memory, in mount and PID namespaces of its own; nothing here changes.
# Needs root and takes minutes, most of them in apt and pip: so it is not among the tests that `make test` runs.
#
# Usage: tests/setup/from-nothing.sh [TARGET...]   (default: demo test)
set -eu

if [ "${1-}" != --inside ]; then
    [ $# -gt 0 ] || set -- demo test
    exec unshare --mount --pid --fork --kill-child "$(realpath "$0")" --inside "$@"
fi
shift

source=$(realpath "$(dirname "$0")/../..")
new=$(mktemp -d)
mount -t tmpfs -o size=6G,mode=755 none "$new"
mkdir "$new/upper" "$new/work" "$new/root"
mount -t overlay -o "lowerdir=/,upperdir=$new/upper,workdir=$new/work" overlay "$new/root"
root=$new/root
mount -t proc proc "$root/proc"
mount --rbind /sys "$root/sys"
mount --rbind /dev "$root/dev"
mount -t tmpfs -o mode=1777 tmpfs "$root/tmp"
mount -t tmpfs -o mode=755 tmpfs "$root/run"
# Huge pages are the machine's, whatever the namespace: runs on either side must wait for each other.
touch /run/ktaskfs-test-pool.lock "$root/run/ktaskfs-test-pool.lock"
mount --bind /run/ktaskfs-test-pool.lock "$root/run/ktaskfs-test-pool.lock"
cp -L /etc/resolv.conf "$root/etc/resolv.conf"
# The namespace takes the mounts with it when this ends; the empty directory is left to remove.
trap 'umount -l "$new"; rmdir "$new"' EXIT

cat >"$root/tmp/inside.sh" <<'INSIDE'
set -eu
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root
export DEBIAN_FRONTEND=noninteractive
packages=$("$source/scripts/setup.sh" list program build tests)
removable=''
for package in $packages; do
    [ "$package" = python3 ] || removable="$removable $package" # half of Debian hangs on python3
done
apt-get -q -y remove --autoremove $removable >/tmp/remove.log
rm -rf /var/lib/apt/lists/* /root/.cache
for program in fusermount3 gcc pkg-config; do
    ! command -v "$program" || { echo "from-nothing: $program is still there"; exit 1; }
done
! python3 -c 'import ensurepip' 2>/dev/null
echo "from-nothing: removed$removable and what needs them ($(grep -c '^Removing' /tmp/remove.log) packages)"
git -c safe.directory='*' clone -q "file://$source" /srv/ktaskfs
cd /srv/ktaskfs
for target in "$@"; do
    echo "from-nothing: make $target"
    make "$target"
done
echo 'from-nothing: once more, without a network'
unshare --net make setup
left=$(git status --porcelain)
[ -z "$left" ] || { echo "from-nothing: left in the clone: $left"; exit 1; }
echo 'from-nothing: done'
INSIDE
source=$source chroot "$root" /bin/sh /tmp/inside.sh "$@"
