"""The utilities of Debian's newest release.

uutils is the one of Debian sid: neither PyPI nor npm, the other registries that a set-up here uses, has a newer one.
"""

from __future__ import annotations

import re
import shlex
import subprocess
from typing import Final

from tests.support.newest import Newest, install

PACKAGES: Final = ("coreutils", "rust-coreutils", "busybox")
GNU: Final = "usr/bin"
UUTILS: Final = "usr/lib/cargo/bin/coreutils"
OLDEST: Final = {GNU: (9, 10), UUTILS: (0, 12)}
"""The versions that the tests want, by their directories. GNU's cat copies with copy_file_range(2), that of uutils with
splice(2)."""


def version(utilities: Newest, directory: str) -> tuple[int, ...]:
    """What the programs of a directory say."""
    command = utilities.command(f"{directory}/cat", "--argv0", "cat")
    text = subprocess.run([*command, "--version"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"\) ([0-9.]+)$", text, re.MULTILINE)
    assert found is not None, text
    return tuple(map(int, found[1].split(".")))


def suit(utilities: Newest) -> bool:
    """Whether the programs are new enough."""
    return all(version(utilities, directory) >= oldest for directory, oldest in OLDEST.items())


class Utilities:
    """Each is a command that a shell can run, with arguments after it. Raises Unavailable."""

    def __init__(self) -> None:
        self._newest: Newest = install("clients", PACKAGES, suits=suit)

    def gnu(self, name: str) -> str:
        """A program of GNU coreutils."""
        return self._command(f"{GNU}/{name}")

    def uutils(self, name: str) -> str:
        """A program of uutils coreutils, which some distributions install in GNU's place."""
        return self._command(f"{UUTILS}/{name}")

    def busybox(self, name: str) -> str:
        """An applet."""
        return f"{self._command('usr/bin/busybox')} {name}"

    def _command(self, program: str) -> str:
        return shlex.join(self._newest.command(program))
