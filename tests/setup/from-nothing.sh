#!/bin/sh
# Proves that a clone needs nothing but Debian, make and git: runs make in a fresh clone of HEAD, without package
# lists and without a venv, in one of two systems in mount and PID namespaces of their own:
# - a copy of this system without the packages that scripts/setup.sh installs and all that depends on them. It is an
#   overlay whose changes lie in memory; nothing here changes.
# - with --release, a fresh Debian of that release below /var/tmp, made by mmdebstrap.
# Needs root and takes minutes, most of them in apt and pip: so it is not among the tests that `make test` runs.
#
# Usage: tests/setup/from-nothing.sh [--release NAME] [TARGET...]   (default: demo test)
set -eu

if [ "${1-}" != --inside ]; then
    release=''
    if [ "${1-}" = --release ]; then
        release=$2
        shift 2
    fi
    [ $# -gt 0 ] || set -- demo test
    exec unshare --mount --pid --fork --kill-child "$(realpath "$0")" --inside "$release" "$@"
fi
release=$2
shift 2

source=$(realpath "$(dirname "$0")/../..")
new=$(mktemp -d -p /var/tmp)
root=$new/root
if [ -n "$release" ]; then
    mmdebstrap --quiet --variant=minbase --include=ca-certificates,git,make "$release" "$root" \
        "deb http://deb.debian.org/debian $release main"
    mount --bind "$root" "$root" # one umount takes all mounts below
    trap 'umount -l "$root" && rm -r --one-file-system "$new"' EXIT
    cp -R /usr/local/share/ca-certificates/. "$root/usr/local/share/ca-certificates"
    chroot "$root" update-ca-certificates >/dev/null
else
    mount -t tmpfs -o size=6G,mode=755 none "$new"
    # The namespace takes the mounts with it when this ends; the empty directory is left to remove.
    trap 'umount -l "$new" && rmdir "$new"' EXIT
    mkdir "$new/upper" "$new/work" "$root"
    mount -t overlay -o "lowerdir=/,upperdir=$new/upper,workdir=$new/work" overlay "$root"
fi
mount -t proc proc "$root/proc"
mount --rbind /sys "$root/sys"
mount --rbind /dev "$root/dev"
mount -t tmpfs -o mode=1777 tmpfs "$root/tmp"
mount -t tmpfs -o mode=755 tmpfs "$root/run"
# Huge pages are the machine's, whatever the namespace: runs on either side must wait for each other.
touch /run/ktaskfs-test-pool.lock "$root/run/ktaskfs-test-pool.lock"
mount --bind /run/ktaskfs-test-pool.lock "$root/run/ktaskfs-test-pool.lock"
cp -L /etc/resolv.conf "$root/etc/resolv.conf"
git -c safe.directory='*' clone -q "file://$source" "$root/srv/ktaskfs"

cat >"$root/tmp/inside.sh" <<'INSIDE'
set -eu
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root
export DEBIAN_FRONTEND=noninteractive
if [ -z "$release" ]; then
    removable=''
    for package in $(/srv/ktaskfs/scripts/setup.sh list program build tests); do
        [ "$package" = python3 ] || removable="$removable $package" # half of Debian hangs on python3
    done
    apt-get -q -y remove --autoremove $removable >/tmp/remove.log
    echo "from-nothing: removed$removable and what needs them ($(grep -c '^Removing' /tmp/remove.log) packages)"
fi
rm -rf /var/lib/apt/lists/* /root/.cache
for program in fusermount3 gcc pkg-config; do
    ! command -v "$program" || { echo "from-nothing: $program is still there"; exit 1; }
done
! python3 -c 'import ensurepip' 2>/dev/null
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
release=$release chroot "$root" /bin/sh /tmp/inside.sh "$@"
