"""Builds the Debian package in a system of its release, and makes an older version of it."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from ktaskfs.version import VERSION
from tests.packaging.chroot import NEWEST, run_in, with_tools
from tests.support.daemon import ROOT

if TYPE_CHECKING:
    from tests.packaging.chroot import Release

OLDER: Final = "0.0.9"
"""A version before the one that is built."""


class Built(NamedTuple):
    """The package of a release: the directory with all that the build has made, and the binary package in it."""

    release: Release
    directory: Path

    @property
    def package(self) -> Path:
        """The one binary package."""
        (package,) = self.directory.glob("*.deb")
        return package


def build(release: Release, directory: Path) -> Built:
    """Build into ``directory`` as a person does; raises Unavailable, and CalledProcessError for a build that fails."""
    layers = with_tools(release)
    wheels = release.place / "pip"
    wheels.mkdir(exist_ok=True)
    binds = {ROOT: "/src", directory: "/out", wheels: "/pip"}
    if certificates := os.environ.get("PIP_CERT"):
        binds[Path(certificates).parent] = str(Path(certificates).parent)
    run_in(layers, "PIP_CACHE_DIR=/pip DPKG_DEB_COMPRESSOR_LEVEL=1 /src/packaging/deb.sh /out", binds=binds)
    return Built(release, directory)


def check(built: Built) -> str:
    """The output of the newest lintian for package and source; raises CalledProcessError for an error."""
    script = "lintian --allow-root --fail-on error --display-info /out/*.changes"
    return run_in(with_tools(NEWEST), script, binds={built.directory: "/out"})


def older(built: Built, directory: Path) -> Path:
    """The same package with the version OLDER, in ``directory``."""
    tree, package = directory / "tree", directory / "older.deb"
    subprocess.run(["dpkg-deb", "--raw-extract", built.package, tree], check=True)
    (version,) = tree.glob("usr/lib/ktaskfs/lib/python*/site-packages/ktaskfs/version.py")
    for path in (version, tree / "DEBIAN/control"):
        text = path.read_text()
        assert VERSION in text
        path.write_text(text.replace(VERSION, OLDER))
    subprocess.run(["dpkg-deb", "-Znone", "--build", tree, package], check=True, capture_output=True)
    return package
