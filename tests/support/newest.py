"""Programs of a newer release of Debian, unpacked beside those that are installed, with their own libraries."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tests.support.packages import CACHE, Unavailable, cache

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

NEWEST: Final = "sid"
KEYS: Final = "/usr/share/keyrings/debian-archive-keyring.gpg"


class Newest:
    """Unpacked packages and all that they depend on. Each program is a command, with arguments after it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._libraries = next(root.glob("usr/lib/*-linux-gnu"))
        self._loader = next(self._libraries.glob("ld-linux-*.so.*"))

    def command(self, program: str, *options: str) -> list[str]:
        """Starts ``program``, a path below the root, with their libraries; ``options`` are the loader's."""
        return [str(self._loader), "--library-path", str(self._libraries), *options, f"{self.root}/{program}"]

    def python(self, place: Path) -> Path:
        """Makes a command at ``place`` of the release's Python, for packages python3: it knows itself by that path."""
        program = f"usr/bin/{(self.root / 'usr/bin/python3').readlink().name}"
        start = shlex.join(self.command(program, "--argv0", str(place)))
        place.write_text(f'#!/bin/sh\nPYTHONHOME={shlex.quote(str(self.root / "usr"))} exec {start} "$@"\n')
        place.chmod(0o755)
        return place


def install(
    name: str, packages: Sequence[str], *, release: str = NEWEST, suits: Callable[[Newest], bool] | None = None
) -> Newest:
    """Download the packages and their dependencies, unless ``name`` is in the cache. Raises Unavailable.

    What the release had when it was downloaded may not suit later: then the newest packages take its place.
    """
    place = CACHE / f"{name}-{release}"
    with cache():
        if not place.exists() or (suits is not None and not suits(Newest(place))):
            fresh = place.with_name(f"{place.name}.new")
            _unpack(fresh, packages, release)
            shutil.rmtree(place, ignore_errors=True)
            fresh.rename(place)
    if suits is not None and not suits(Newest(place)):
        raise Unavailable(f"{release} has older packages than the tests want: {' '.join(packages)}")
    return Newest(place)


def _unpack(place: Path, packages: Sequence[str], release: str) -> None:
    """apt with separate lists, sources and cache: the packages of the machine do not matter."""
    with tempfile.TemporaryDirectory(dir=CACHE) as name:
        own = Path(name)
        (own / "lists").mkdir()
        (own / "status").touch()
        (own / "sources.list").write_text(f"deb [signed-by={KEYS}] {_mirror()} {release} main\n")
        settings = {
            "Dir::Etc::SourceList": own / "sources.list",
            "Dir::Etc::SourceParts": "/dev/null",
            "Dir::State": own,
            "Dir::State::Lists": own / "lists",
            "Dir::State::Status": own / "status",
            "Dir::Cache": own,
            "APT::Sandbox::User": "root",
            "APT::Install-Recommends": "false",
            "Acquire::Languages": "none",
            "Acquire::Check-Valid-Until": "false",  # sid expires after a week, and a mirror may stand still
        }
        apt = ["apt-get", "-q", "-y", *(f"-o{key}={value}" for key, value in settings.items())]
        _run(*apt, "update")
        _run(*apt, "--download-only", "install", *packages)
        for archive in own.glob("archives/*.deb"):
            _run("dpkg", "-x", str(archive), str(own / "root"))
        (own / "root").chmod(0o755)
        (own / "root").rename(place)


def _mirror() -> str:
    """Where this machine gets Debian's packages from."""
    listed = _run("apt-get", "indextargets", "--format", "$(ORIGIN) $(COMPONENT) $(REPO_URI)", "Created-By: Packages")
    found = [line.split() for line in listed.splitlines()]
    addresses = [words[2] for words in found if words[:2] == ["Debian", "main"] and "security" not in words[2]]
    if not addresses:
        raise Unavailable("apt knows no archive of Debian here")
    return addresses[0]


def _run(*command: str) -> str:
    environment = dict(os.environ, DEBIAN_FRONTEND="noninteractive")
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
