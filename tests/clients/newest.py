"""The utilities of Debian's newest release."""

from __future__ import annotations

import shlex
from typing import Final

from tests.support.newest import Newest, install

PACKAGES: Final = ("coreutils", "rust-coreutils", "busybox")


class Utilities:
    """Each is a command that a shell can run, with arguments after it. Raises Unavailable."""

    def __init__(self) -> None:
        self._newest: Newest = install("clients", PACKAGES)

    def gnu(self, name: str) -> str:
        """A program of GNU coreutils."""
        return self._command(f"usr/bin/{name}")

    def uutils(self, name: str) -> str:
        """A program of uutils coreutils, which some distributions install in GNU's place."""
        return self._command(f"usr/lib/cargo/bin/coreutils/{name}")

    def busybox(self, name: str) -> str:
        """An applet."""
        return f"{self._command('usr/bin/busybox')} {name}"

    def _command(self, program: str) -> str:
        return shlex.join(self._newest.command(program))
