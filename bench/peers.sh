#!/bin/sh
# Installs what the benchmarks measure ktaskfs beside, from Debian's packages, and what draws the plots, into .venv.
# Needs root or sudo only for missing packages. A second run finds everything there and needs no network.
# A package that this release does not have is left out: the benchmarks leave out the peer, and say so.
set -eu
cd "$(dirname "$0")/.."

# QEMU's package is named after the machines that it emulates; the other tools are those that a person would use.
case $(uname -m) in
    x86_64) qemu=qemu-system-x86 ;;
    aarch64) qemu=qemu-system-arm ;;
    *) qemu=qemu-system-misc ;;
esac
packages="$qemu xxhash b3sum vmtouch numactl gcc libc6-dev libfuse3-dev pkg-config"

fail() {
    echo "peers: $*" >&2
    exit 1
}

as_root() {
    if [ "$(id -u)" = 0 ]; then
        "$@"
    elif command -v sudo >/dev/null; then
        sudo "$@"
    else
        fail "run this as root, or install sudo: root's rights are needed for: $*"
    fi
}

# Prints those of its arguments that are not installed.
missing() {
    for package in "$@"; do
        # shellcheck disable=SC2016 # dpkg's variable, not the shell's
        [ "$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null)" = installed ] || echo "$package"
    done
}

# Prints those of its arguments that this release of Debian has.
known() {
    for package in "$@"; do
        if [ -n "$(apt-cache show --no-all-versions "$package" 2>/dev/null)" ]; then
            echo "$package"
        else
            echo "peers: this release has no package $package" >&2
        fi
    done
}

# shellcheck disable=SC2086 # lists of words
install_packages() {
    command -v dpkg-query >/dev/null || return 0 # not a Debian: what is there is measured
    wanted=$(missing $packages)
    [ -n "$wanted" ] || return 0
    as_root apt-get -q -o DPkg::Lock::Timeout=300 update
    wanted=$(known $wanted)
    [ -n "$wanted" ] || return 0
    echo "peers: installing" $wanted
    as_root env DEBIAN_FRONTEND=noninteractive \
        apt-get -q -y -o DPkg::Lock::Timeout=300 install --no-install-recommends $wanted
}

install_packages
if ! .venv/bin/python -c 'import matplotlib' 2>/dev/null; then
    .venv/bin/python -m pip install --quiet --editable '.[bench]'
    # Under sudo, give the owner of the clone what was made in it.
    [ "$(id -u)" != 0 ] || chown -R --reference=. .venv ./*.egg-info
fi
