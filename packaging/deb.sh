#!/bin/sh
# Builds the Debian package for the release that this machine runs, source and binary, and puts it into DIRECTORY.
# Installs what the build needs and is missing.
#
# Usage: packaging/deb.sh DIRECTORY
set -eu
mkdir -p "$1"
out=$(realpath "$1")
cd "$(dirname "$0")/.."
me=deb
. scripts/packages.sh
. /etc/os-release

# The package depends on the release's Python, so each release has a version of its own, and the newer has the higher one.
version=$(sed -n 's/^VERSION\b.*"\(.*\)"$/\1/p' ktaskfs/version.py)+deb${VERSION_ID:-99}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
source=$work/ktaskfs-$version
mkdir "$source"
tar --exclude=__pycache__ -c LICENSE README.md pyproject.toml ktaskfs mount systemd packaging docs/abi docs/man docs/reference |
    tar -x -C "$source"
mv "$source/packaging/debian" "$source/debian"
made=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || date +%s)}
cat >"$source/debian/changelog" <<CHANGELOG
ktaskfs ($version) ${VERSION_CODENAME:-unstable}; urgency=medium

  * Built for this release from the sources of the version.

 -- The ktaskfs authors <ktaskfs@ktaskfs.invalid>  $(LC_ALL=C date --rfc-email --date="@$made")
CHANGELOG

if [ -n "$(missing dpkg-dev)" ]; then
    update_lists
    install_packages dpkg-dev
fi
cd "$source"
if ! dpkg-checkbuilddeps 2>/dev/null; then
    update_lists
    as_root env DEBIAN_FRONTEND=noninteractive \
        apt-get -q -y -o DPkg::Lock::Timeout=300 build-dep --no-install-recommends "$source"
fi
dpkg-buildpackage --no-sign
find "$work" -maxdepth 1 -type f -exec mv -t "$out" {} +
