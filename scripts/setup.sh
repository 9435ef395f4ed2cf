#!/bin/sh
# Makes a clone ready to run: installs the Debian packages that are missing, makes .venv with the newest suitable
# Python, and installs ktaskfs in it, editable, with what the tests need.
# Needs root or sudo only for missing packages. A second run finds everything there and needs no network.
# PYTHON=/path/to/python3 chooses the interpreter.
set -eu
cd "$(dirname "$0")/.."

# pyfuse3 is built from its source: hence the compiler, the headers and pkg-config. The tests read the mount with
# busybox and less, boot a systemd of their own, start containers, and give a daemon a clock that goes back (faketime).
packages='fuse3 libfuse3-dev pkg-config gcc libc6-dev python3 python3-dev python3-venv busybox less'
packages="$packages systemd dbus man-db procps faketime podman runc"

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

# shellcheck disable=SC2046,SC2086 # lists of words
set -- $(missing $packages) # where it is not a Debian, what is missing will say so itself
if [ $# -gt 0 ]; then
    update_lists
    install_packages "$@"
fi
wanted="$(pwd) $(sha256sum <pyproject.toml)"
installed=$(cat .venv/installed 2>/dev/null || :)
if [ "$installed" != "$wanted" ] || ! .venv/bin/python -c '' 2>/dev/null; then
    case $installed in
        "$(pwd) "*) .venv/bin/python -c '' 2>/dev/null || make_venv ;; # other dependencies: add them
        *) make_venv ;;                                                # its scripts hold the path of another place
    esac
    .venv/bin/python -m pip install --quiet --editable '.[dev]'
    echo "$wanted" >.venv/installed
    give_to_owner
fi
