"""Builds the Debian package in a system of its release, and makes an older version of it."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from ktaskfs.version import VERSION
from tests.packaging.chroot import NEWEST, run_in, with_tools
from tests.support.daemon import ROOT

if TYPE_CHECKING:
    from tests.packaging.chroot import Release

OLDER: Final = "0.1.0"
"""A version before the one that is built."""
PAST: Final = "db5b2f70e73abefc5b555893544eb34038cb99b0"
"""A commit of that version, with records of version 3, another page, and a service whose mount ends with its daemon."""


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
    """A package of version OLDER, in ``directory``.

    Its modules and services are those of the commit PAST, all else is today's. In a clone without that commit
    (git clone --depth) they are today's, too.
    """
    tree, package, past = directory / "tree", directory / "older.deb", directory / "past"
    subprocess.run(["dpkg-deb", "--raw-extract", built.package, tree], check=True)
    (modules,) = tree.glob("usr/lib/ktaskfs/lib/python*/site-packages/ktaskfs")
    git = ["git", "-c", f"safe.directory={ROOT}", "-C", str(ROOT)]
    if subprocess.run([*git, "cat-file", "-e", PAST], capture_output=True, check=False).returncode == 0:
        past.mkdir()
        files = subprocess.run([*git, "archive", PAST, "ktaskfs", "systemd"], stdout=subprocess.PIPE, check=True).stdout
        subprocess.run(["tar", "-C", past, "-x"], input=files, check=True)
        shutil.rmtree(modules)
        (past / "ktaskfs").rename(modules)
        for service in past.glob("systemd/*.service"):
            shutil.rmtree(tree / f"usr/lib/systemd/system/{service.name}.d")
            text = service.read_text().replace("@SBINDIR@", "/usr/sbin")
            # Nobody else saw the mount of that version with Debian 13's systemd.
            text = text.replace("PrivateNetwork=yes\n", "PrivateNetwork=yes\nPrivateMounts=no\n")
            (tree / "usr/lib/systemd/system" / service.name).write_text(text)
    for path in (modules / "version.py", tree / "DEBIAN/control"):
        text = path.read_text().replace(VERSION, OLDER)
        assert OLDER in text
        path.write_text(text)
    subprocess.run(["dpkg-deb", "-Znone", "--build", tree, package], check=True, capture_output=True)
    return package
