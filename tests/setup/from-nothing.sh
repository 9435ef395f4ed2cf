#!/bin/sh
# Proves that a clone needs nothing but Debian, make and git: runs make in a fresh clone of HEAD, without package
# lists and without a venv, in one of two systems in mount and PID namespaces of their own:
# - a copy of this system without the packages that scripts/setup.sh installs and all that depends on them. It is an
#   overlay whose changes lie in memory; nothing here changes.
# - with --release, a fresh Debian of that release below /var/tmp, made by mmdebstrap, which must be installed.
# Needs root and takes minutes, most of them in apt and pip: so it is not among the tests that `make test` runs.
#
# Usage: tests/setup/from-nothing.sh [--release NAME] [TARGET...]   (default: demo test)
set -eu

if [ "${1-}" != --inside ]; then
    release=''
    if [ "${1-}" = --release ]; then
        release=$2
        shift 2
        command -v mmdebstrap >/dev/null || { echo "from-nothing: --release needs the package mmdebstrap" >&2; exit 1; }
    fi
    [ $# -gt 0 ] || set -- demo test
    new=$(mktemp -d -p /var/tmp)
    # Nothing is mounted there outside of the namespace, so this removes nothing else.
    trap 'grep -q " $new/" /proc/self/mountinfo || rm -r --one-file-system "$new"' EXIT
    if [ -n "$release" ]; then
        mmdebstrap --quiet --variant=minbase --include=ca-certificates,git,make "$release" "$new/root" \
            "deb http://deb.debian.org/debian $release main"
        cp -R /usr/local/share/ca-certificates/. "$new/root/usr/local/share/ca-certificates"
        chroot "$new/root" update-ca-certificates >/dev/null
    fi
    unshare --mount --pid --fork --kill-child "$(realpath "$0")" --inside "$new" "$release" "$@"
    exit
fi
new=$2 release=$3
shift 3

source=$(realpath "$(dirname "$0")/../..")
if [ -n "$release" ]; then
    mount --bind "$new/root" "$new/root"
else
    mount -t tmpfs -o size=6G,mode=755 none "$new"
    mkdir "$new/upper" "$new/work" "$new/root"
    mount -t overlay -o "lowerdir=/,upperdir=$new/upper,workdir=$new/work" overlay "$new/root"
fi
root=$new/root
mount -t proc proc "$root/proc"
mount --rbind /sys "$root/sys"
mount --rbind /dev "$root/dev"
mount -t tmpfs -o mode=1777 tmpfs "$root/tmp"
mount -t tmpfs -o mode=755 tmpfs "$root/run"
# Huge pages and devices are the machine's, whatever the namespace: runs on either side must wait for each other.
for lock in ktaskfs-test-pool.lock ktaskfs-test-fuse.lock; do
    touch "/run/$lock" "$root/run/$lock"
    mount --bind "/run/$lock" "$root/run/$lock"
done
cp -L /etc/resolv.conf "$root/etc/resolv.conf"
git -c safe.directory='*' clone -q "file://$source" "$root/srv/ktaskfs"

cat >"$root/tmp/inside.sh" <<'INSIDE'
set -eu
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root
export DEBIAN_FRONTEND=noninteractive
umount -l /mnt
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
again=program
for target in "$@"; do
    echo "from-nothing: make $target"
    make "$target"
    case $target in demo | install | program) ;; *) again=setup ;; esac # the others begin with the setup of the tests
done
echo "from-nothing: make $again once more, without a network"
unshare --net make $again
left=$(git status --porcelain)
[ -z "$left" ] || { echo "from-nothing: left in the clone: $left"; exit 1; }
echo 'from-nothing: done'
INSIDE
# Not chroot(2): a process in it may not make user namespaces (user_namespaces(7)), which the tests do.
cd "$root"
pivot_root . mnt
release=$release exec /bin/sh /tmp/inside.sh "$@"
