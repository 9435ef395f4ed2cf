#!/bin/sh
# Makes a clone ready: `setup.sh program` for what ktaskfs itself needs, `setup.sh tests` for what its tests need, too.
# Installs the Debian packages that are missing, makes .venv with the newest suitable Python, and installs ktaskfs in
# it, editable. What only the build needs is removed again by `program`, if it was not there before.
# Needs root or sudo only for packages. A second run finds everything there and needs no network.
# `setup.sh list KIND...` prints packages: program, build, tests. PYTHON=/path/to/python3 chooses the interpreter.
set -eu
cd "$(dirname "$0")/.."

program='fuse3 python3'
# pyfuse3 is built from its source.
build='libfuse3-dev pkg-config gcc libc6-dev python3-dev python3-venv'
# The tests read the mount with busybox, less, rsync, node and inotifywait, write to it with jq, mawk and perl, complete
# the command in zsh and fish, watch it in tmux, boot a systemd of their own, start containers and guests, make
# filesystems, have Slurm start jobs, and Ansible install a package.
tests='busybox less systemd dbus man-db procps podman runc rsync jq mawk nodejs perl inotify-tools zsh fish tmux'
tests="$tests e2fsprogs xfsprogs btrfs-progs libvirt-daemon libvirt-daemon-driver-qemu libvirt-clients qemu-system-x86"
# Debian 13 has some of util-linux in a package of its own.
tests="$tests util-linux-extra openssh-server openssh-client iproute2"
tests="$tests munge slurmctld slurmd slurm-client python3-apt"

me=setup
. scripts/packages.sh

# One line for each interpreter found that is new enough and complete: whether every user may run it (a daemon of
# an ordinary user needs that), its version, its path. The last one in the order of versions is the best.
suitable_pythons() {
    for directory in $(echo "$PATH" | tr : ' ') /usr/bin; do
        for python in "$directory"/python3 "$directory"/python3.[0-9] "$directory"/python3.[0-9][0-9]; do
            [ -x "$python" ] || continue
            "$python" - <<'PYTHON' 2>/dev/null || :
import ensurepip, os, pathlib, sys, sysconfig, venv
header = pathlib.Path(sysconfig.get_path("include"), "Python.h")
real = pathlib.Path(os.path.realpath(sys.executable))
if sys.version_info >= (3, 11) and header.exists():
    public = all(place.stat().st_mode & 1 for place in (real, *real.parents))
    print(int(public), "%d.%d.%d" % sys.version_info[:3], real)
PYTHON
        done
    done | sort -V
}

make_venv() {
    python=${PYTHON:-$(suitable_pythons | tail -n 1 | cut -d ' ' -f 3-)}
    [ -n "$python" ] || fail 'no Python of version 3.11 or newer with its headers and venv was found'
    echo "setup: making .venv with $python"
    [ ! -L .venv ] || rm .venv # --clear would empty the directory that a link leads to
    "$python" -m venv --clear .venv
}

have() { # PACKAGE...: where it is not a Debian, what is missing will say so itself
    # shellcheck disable=SC2046 # a list of words
    set -- $(missing "$@")
    if [ $# -gt 0 ]; then
        update_lists
        install_unstarted "$@"
    fi
}

have_for_now() { # PACKAGE...: as have; $added becomes what apt says that it installs for that
    # shellcheck disable=SC2046 # a list of words
    set -- $(missing "$@")
    if [ $# -gt 0 ]; then
        update_lists
        added=$(apt-get -s -q --no-install-recommends install "$@" | awk '$1 == "Inst" && $3 !~ /^\[/ { print $2 }')
        install_packages "$@"
    fi
}

remove_added() { # by dpkg, which unlike apt leaves what something else needs by now
    if [ -n "$added" ]; then
        # shellcheck disable=SC2086 # a list of words
        echo "setup: removing what only the build needed:" $added
        # shellcheck disable=SC2086 # a list of words
        as_root dpkg --purge $added >/dev/null || :
    fi
}

# shellcheck disable=SC2086 # lists of words
case ${1-} in
    program)
        extra=top
        versions=''
        have $program
        ;;
    tests)
        extra=dev
        versions='--constraint scripts/versions.txt'
        have $program $build $tests
        ;;
    list)
        shift
        for kind in "$@"; do
            case $kind in
                program) echo $program ;;
                build) echo $build ;;
                tests) echo $tests ;;
                *) fail "$kind is neither program, build nor tests" ;;
            esac
        done
        exit
        ;;
    *) fail 'usage: setup.sh program|tests|list KIND...' ;;
esac
wanted="$(pwd) $(cat pyproject.toml scripts/versions.txt | sha256sum)"
installed=$(cat .venv/installed 2>/dev/null || :)
for sufficient in "$wanted $extra" "$wanted dev"; do # the tests need all that the program does
    if [ "$installed" = "$sufficient" ] && .venv/bin/python -c '' 2>/dev/null; then
        exit
    fi
done
if [ $extra = top ]; then
    added=''
    trap remove_added EXIT
    trap 'exit 130' HUP INT TERM
    # shellcheck disable=SC2086 # a list of words
    have_for_now $build
fi
case $installed in
    "$(pwd) "*) .venv/bin/python -c '' 2>/dev/null || make_venv ;; # other dependencies: add them
    *) make_venv ;;                                                # its scripts hold the path of another place
esac
# shellcheck disable=SC2086 # an option and its value
.venv/bin/python -m pip install --quiet $versions --editable ".[$extra]"
echo "$wanted $extra" >.venv/installed
give_to_owner
