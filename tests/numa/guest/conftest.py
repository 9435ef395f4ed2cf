"""Shared fixtures of the tests in the virtual machine: an emulated processor takes ten seconds to start a daemon."""

from __future__ import annotations

import contextlib
import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from tests.mount.conftest import memory
from tests.support.daemon import ROOT, Mount
from tests.support.leftovers import none_left
from tests.systemd.conftest import machine

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["machine", "memory"]


SERVICE: Final = (ROOT / "systemd/ktaskfs.service").read_text()


def as_a_service() -> list[str]:
    """A command that runs another as the unit does: with its capabilities, and without a way to more."""
    names = " ".join(re.findall(r"^CapabilityBoundingSet=(.*)$", SERVICE, re.MULTILINE)).lower().split()
    assert "cap_setuid" in names
    assert re.search("^NoNewPrivileges=yes$", SERVICE, re.MULTILINE)
    bounding = ",".join(["-all", *(f"+{name.removeprefix('cap_')}" for name in names)])
    return ["setpriv", "--no-new-privs", f"--bounding-set={bounding}", "--inh-caps=-all"]


@contextlib.contextmanager
def daemon_for_all(prefix: Sequence[str]) -> Iterator[Mount]:
    """A daemon which any user may use; ``prefix`` is a command that runs it."""
    with none_left(), tempfile.TemporaryDirectory(prefix="kt-") as name:
        Path(name).chmod(0o755)
        point, state = Path(name, "mount"), Path(name, "state")
        point.mkdir()
        state.mkdir()
        mount = Mount(point, statedir=state, log=Path(name, "log"), options="mode=0666", prefix=prefix)
        yield mount
        mount.close()


@pytest.fixture(scope="session")
def shared() -> Iterator[Mount]:
    """One daemon for all."""
    with daemon_for_all(as_a_service()) as mount:
        yield mount


@pytest.fixture
def mounted(shared: Mount) -> Iterator[Mount]:
    """A daemon that has no task; those of a test that failed are killed."""
    yield shared
    script = 'cd tasks && for each in */; do\n[ -e "$each/state" ] || continue\n'
    script += 'echo kill 2>/dev/null > "$each/control"; tail -n 1 "$each/wait"; rmdir "$each"; done'
    shared.shell(script)
    assert shared.shell('for each in tasks/*/state; do [ ! -e "$each" ] || echo "$each"; done').out == ""
