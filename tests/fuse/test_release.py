"""The last close of a file: whatever it meets, the server keeps nothing of it."""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pyfuse3
import pytest

from ktaskfs.fuse.operations import TreeOperations
from ktaskfs.fuse.turns import Turns
from ktaskfs.vfs import ROOT_INO, Attributes, StaticDirectory, TextFile

if TYPE_CHECKING:
    from ktaskfs.vfs import Caller

PIECE = b"x" * 1024
"""The begin of a command."""


async def test_a_bug_in_a_command_leaks_no_open_file(caplog: pytest.LogCaptureFixture) -> None:
    async def write(caller: Caller, text: str) -> None:
        raise RuntimeError("a bug")

    file = TextFile(2, Attributes(0o644), None, write)
    root = StaticDirectory(ROOT_INO, Attributes(0o555), {"file": file})
    operations = TreeOperations(root, Turns(lambda: False))
    me: Any = SimpleNamespace(uid=1, gid=1, pid=0)
    handle = (await operations.open(2, os.O_WRONLY, me)).fh
    await operations.write(handle, 0, PIECE)
    with pytest.raises(pyfuse3.FUSEError):
        await operations.release(handle)
    assert "a bug" in caplog.text
    assert operations.open_handles == 0
