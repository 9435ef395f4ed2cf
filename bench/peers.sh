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

me=peers
. scripts/packages.sh

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

# shellcheck disable=SC2046,SC2086 # lists of words
set -- $(missing $packages)
if [ $# -gt 0 ]; then
    update_lists
    set -- $(known "$@")
    [ $# = 0 ] || install_packages "$@"
fi
if ! .venv/bin/python -c 'import matplotlib' 2>/dev/null; then
    .venv/bin/python -m pip install --quiet --editable '.[bench]'
    give_to_owner
fi
