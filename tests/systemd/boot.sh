#!/bin/bash
# Boots the system's own systemd as PID 1 of new PID, mount, UTS, IPC and cgroup namespaces, on a throw-away overlay
# of / whose changes are kept in memory. Of this system's services only the journal, D-Bus, sysusers and tmpfiles run.
#
#   boot.sh start DIRECTORY LAYER SETUP [ROOT]
#                                         boot with the directory LAYER over /, after the shell command SETUP in there;
#                                         or over ROOT, which has another systemd: it gets control groups of version 2 alone
#   boot.sh exec DIRECTORY COMMAND...     run a command in it
#   boot.sh stop DIRECTORY                end it; nothing is left
#
# DIRECTORY is an empty one for what must be remembered.
set -eu
verb=$1
dir=$2
shift 2
name=ktaskfs-test-${dir##*/}
patience=$((60 * ${KTASKFS_TEST_PATIENCE:-1})) # seconds
controllers="name=systemd memory pids" # those of version 1 that the machine gets, where this one has them there, too

hierarchies() { # one a line: the controller of version 1, or "unified", and what is to be the machine's group there
    [ "$1" = / ] || controllers='' # systemd 257 refuses version 1
    local controllers2=/sys/fs/cgroup controller point own
    [ ! -d $controllers2/unified ] || controllers2=$controllers2/unified
    for controller in memory pids; do # so that a unit's limits hold
        ! grep -qw $controller $controllers2/cgroup.controllers ||
            echo +$controller >$controllers2/cgroup.subtree_control || :
    done
    echo "unified $controllers2/$name"
    for controller in $controllers; do
        point=$(awk -v wanted="$controller" '$3 == "cgroup" && index("," $4 ",", "," wanted ",") { print $2; exit }' \
            /proc/self/mounts)
        own=$(awk -F: -v wanted="$controller" 'index("," $2 ",", "," wanted ",") { print $3; exit }' /proc/self/cgroup)
        [ -z "$point" ] || echo "$controller $point${own%/}/$name"
    done
}

mount_groups() { # on $1; with controllers of version 1 as systemd calls it hybrid
    if [ "$(wc -l <"$dir/groups")" = 1 ]; then
        mount -t cgroup2 -o nosuid,nodev,noexec none "$1"
        return
    fi
    mount -t tmpfs -o mode=755,nosuid,nodev,noexec none "$1"
    while read -r controller _; do
        mkdir "$1/${controller#name=}"
        case $controller in
            unified) mount -t cgroup2 -o nosuid,nodev,noexec none "$1/unified" ;;
            name=*) mount -t cgroup -o "nosuid,nodev,noexec,none,$controller" none "$1/${controller#name=}" ;;
            *) mount -t cgroup -o "nosuid,nodev,noexec,$controller" none "$1/$controller" ;;
        esac
    done <"$dir/groups"
    mount -o remount,ro "$1" # or systemd would take the kernel's other controllers from version 2
}

inside() { # as PID 1 of the new namespaces, in its groups already
    layer=$1 setup=$2 lower=${3:-/}
    root=$dir/system/root
    mkdir "$dir/system"
    mount -t tmpfs -o mode=755,size=1g none "$dir/system"
    mkdir "$dir/system/upper" "$dir/system/work" "$root"
    cp -a "$layer/." "$dir/system/upper/"
    mount -t overlay -o "lowerdir=$lower,upperdir=$dir/system/upper,workdir=$dir/system/work" none "$root"
    mount -t proc proc "$root/proc"
    mount -t sysfs sysfs "$root/sys" # all of it is the real kernel's; only the pools may be set
    for pools in kernel/mm/hugepages devices/system/node; do
        mount --bind "$root/sys/$pools" "$root/sys/$pools"
    done
    mount -o remount,bind,ro "$root/sys"
    mount_groups "$root/sys/fs/cgroup"
    version2=$root/sys/fs/cgroup
    [ ! -d "$version2/unified" ] || version2=$version2/unified
    while grep -qx 0 "$version2/cgroup.procs"; do sleep 0.02; done # a process that is not seen from in here: see leave
    mount -t tmpfs -o mode=755,nosuid none "$root/dev"
    for device in null zero full random urandom tty fuse autofs; do
        [ -e "/dev/$device" ] || [ "$device" != autofs ] || continue # not every kernel has it
        mknod -m 666 "$root/dev/$device" c "0x$(stat -c %t /dev/$device)" "0x$(stat -c %T /dev/$device)"
    done
    mkdir "$root/dev/pts" "$root/dev/shm" "$root/dev/mqueue" "$root/dev/hugepages"
    mount -t devpts -o newinstance,ptmxmode=666,mode=620,gid=5 none "$root/dev/pts"
    ln -s pts/ptmx "$root/dev/ptmx"
    ln -s /proc/self/fd "$root/dev/fd"
    mount -t tmpfs -o mode=1777,nosuid,nodev none "$root/dev/shm"
    mount -t tmpfs -o mode=755,nosuid,nodev none "$root/run"
    mount -t tmpfs -o mode=1777,nosuid,nodev none "$root/tmp"
    mkdir "$dir/disk" "$root/disk"
    mount --bind "$dir/disk" "$root/disk" # what / is on is memory; a clone in /srv or /mnt must stay in sight
    mount --bind "$root/proc/sys" "$root/proc/sys" # these are the settings of the kernel that all share
    mount -o remount,bind,ro "$root/proc/sys"

    etc=$root/etc/systemd/system
    rm -rf "$etc"/*.wants "$root"/usr/lib/systemd/system/*.wants
    mkdir -p "$etc/sysinit.target.wants" "$etc/sockets.target.wants" "$root/etc/systemd/journald.conf.d"
    for unit in journald sysusers tmpfiles-setup; do
        ln -s /usr/lib/systemd/system/systemd-$unit.service "$etc/sysinit.target.wants/"
    done
    for unit in systemd-journald.socket systemd-journald-dev-log.socket dbus.socket; do
        ln -s /usr/lib/systemd/system/$unit "$etc/sockets.target.wants/"
    done
    printf '[Journal]\nStorage=volatile\nReadKMsg=no\nAudit=no\n' >"$root/etc/systemd/journald.conf.d/test.conf"
    mkdir -p "$root/etc/systemd/system.conf.d" # a refusal is seen at the write, even if a worker stalls
    printf '[Manager]\nDefaultEnvironment=KTASKFS_PATIENCE=%s\n' "$patience" >"$root/etc/systemd/system.conf.d/test.conf"
    if [ "$patience" != 60 ]; then # a daemon on emulated processors may be late with its sign of life
        mkdir "$etc/ktaskfs.service.d"
        printf '[Service]\nWatchdogSec=%s\n' "$((patience / 2))" >"$etc/ktaskfs.service.d/test-patience.conf"
    fi
    : >"$root/etc/fstab"
    tr -d - </proc/sys/kernel/random/uuid >"$root/etc/machine-id"
    chroot "$root" /bin/sh -euc "$setup"

    cd "$root"
    mkdir .old
    pivot_root . .old
    umount -l /.old
    rmdir /.old
    hostname ktaskfs-test
    exec env -i container=ktaskfs-test PATH=/usr/sbin:/usr/bin:/sbin:/bin TERM=dumb \
        /lib/systemd/systemd --system --unit=multi-user.target --log-target=journal --show-status=no
}

leave() { # has a process out of the machine's own groups: with one in there, version 2 gives units no controllers
    while read -r _ group; do
        mkdir -p "$group/commands"
        echo "$1" >"$group/commands/cgroup.procs"
    done <"$dir/groups"
}

enter() { # in control groups of the machine's, as after a login there
    leave $BASHPID
    # By the real program: this script's own path may not exist in there.
    exec nsenter --target "$(cat "$dir/init")" --mount --uts --ipc --pid --cgroup --root --wd -- "$@"
}

case $verb in
    inside) inside "$@" ;;
    start)
        hierarchies "${3:-/}" >"$dir/groups"
        while read -r _ group; do mkdir "$group"; done <"$dir/groups"
        (
            while read -r _ group; do
                echo $BASHPID >"$group/cgroup.procs"
            done <"$dir/groups"
            exec setsid unshare --fork --kill-child --pid --mount --uts --ipc --cgroup \
                "$0" inside "$dir" "$@" </dev/null >"$dir/console" 2>&1
        ) &
        echo $! >"$dir/unshare"
        end=$((SECONDS + patience))
        until (enter systemctl is-system-running --wait) 2>/dev/null | grep -qE 'running|degraded'; do
            child=$(cat "/proc/$!/task/$!/children" 2>/dev/null || :)
            echo "${child% }" >"$dir/init"
            [ -z "$child" ] || leave $!
            if ! kill -0 $! 2>/dev/null || [ $SECONDS -ge $end ]; then
                cat "$dir/console" >&2
                "$0" stop "$dir"
                exit 1
            fi
            sleep 0.02
        done
        ;;
    exec) enter "$@" ;;
    stop)
        unshare=$(cat "$dir/unshare")
        kill -9 "$unshare" 2>/dev/null || : # --kill-child: and PID 1 with it, and so all
        end=$((SECONDS + patience))
        while read -r _ group; do
            until find "$group" -depth -type d -exec rmdir {} + 2>/dev/null; do
                [ $SECONDS -lt $end ] || { echo "boot: processes are left in $group" >&2; exit 1; }
                sleep 0.02
            done
        done <"$dir/groups"
        ;;
    *)
        echo "boot: $verb is no verb" >&2
        exit 2
        ;;
esac
