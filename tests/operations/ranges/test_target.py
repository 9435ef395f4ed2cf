"""What the operations on files of memory say of a target elsewhere, and of one that is truncated under them.

The contract of all operations allows more: an operation may work on other filesystems, and may not notice that the
file became shorter.
"""

from __future__ import annotations

import os
from errno import ENXIO
from typing import TYPE_CHECKING

import pytest

from ktaskfs.errors import NotSupported
from tests.support.memory_files import content

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.runner import Place, Runner

TEXTS = {
    "fallocate": {"length": "16M"},
    "clear": {},
    "fill": {},
    "verify": {},
    "survey": {},
    "migrate": {"nodes": "0"},
    "free": {},
}


@pytest.mark.parametrize("name", TEXTS)
def test_another_filesystem(runner: Runner, disk: Path, name: str) -> None:
    (disk / "file").write_bytes(content(4096))
    assert isinstance(runner.refused(name, path=disk / "file", **TEXTS[name]), NotSupported)
    assert (disk / "file").read_bytes() == content(4096)


@pytest.mark.parametrize("name", sorted(set(TEXTS) - {"free"}))
def test_truncated_meanwhile(runner: Runner, place: Place, name: str) -> None:
    path, length = place.directory / "file", 8 * place.unit
    if name == "fallocate":
        plan = runner.prepare(name, path=path, length=length)
    else:
        runner.run("fallocate", path=path, length=length)
        plan = runner.prepare(name, path=path, **TEXTS[name])
    os.truncate(path, place.unit)
    error = runner.failure(plan)
    assert (error.errno, "truncated" in error.message) == (ENXIO, True)
