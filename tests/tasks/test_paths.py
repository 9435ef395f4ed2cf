"""Relative paths in a spec, seen from the caller's root and directory."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from ktaskfs.host.credentials import CallerProcess
from ktaskfs.tasks.paths import absolute_paths
from tests.tasks.house import OPERATIONS, me

if TYPE_CHECKING:
    from pathlib import Path

TEXTS = {"path": "f", "length": "4096"}


def paths(root: Path | str, cwd: Path | str | int, path: str = "f") -> str:
    """The path that a caller with ``root``, in ``cwd``, means by ``path``."""
    who = me()
    who.close()
    flags = os.O_PATH | os.O_DIRECTORY
    caller = CallerProcess(who.identity, os.open(root, flags), cwd if isinstance(cwd, int) else os.open(cwd, flags))
    try:
        texts = absolute_paths(OPERATIONS["fallocate"], TEXTS | {"path": path}, caller)
    finally:
        caller.close()
    assert texts["length"] == "4096"
    return texts["path"]


def test_a_path_is_below_the_working_directory(tmp_path: Path) -> None:
    assert paths("/", tmp_path) == f"{tmp_path}/f"
    assert paths("/", tmp_path, "/abs") == "/abs"
    assert paths("/", tmp_path, "../x") == f"{tmp_path}/../x"
    assert paths("/", "/") == "/f"


def test_in_another_root_a_path_begins_there(tmp_path: Path) -> None:
    (tmp_path / "root" / "in").mkdir(parents=True)
    (tmp_path / "root2").mkdir()
    assert paths(tmp_path / "root", tmp_path / "root" / "in") == "/in/f"
    assert paths(tmp_path / "root", tmp_path / "root") == "/f"
    assert paths(tmp_path / "root", tmp_path / "root2") == "f"
    assert paths(tmp_path / "root", "/") == "f"
    assert paths(tmp_path / "root", "/usr") == "f"


def test_a_directory_without_a_name_leaves_paths_alone(tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    fd = os.open(gone, os.O_PATH | os.O_DIRECTORY)
    gone.rmdir()
    assert paths("/", fd) == "f"


def test_a_name_that_is_not_utf8_is_a_name(tmp_path: Path) -> None:
    odd = os.fsencode(tmp_path) + b"/\xff"
    os.mkdir(odd)
    assert os.fsencode(paths("/", os.open(odd, os.O_PATH | os.O_DIRECTORY))) == odd + b"/f"


def test_a_directory_deeper_than_a_path_is_long_leaves_paths_alone(tmp_path: Path) -> None:
    fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    for _ in range(40):
        os.mkdir("d" * 200, dir_fd=fd)
        deeper = os.open("d" * 200, os.O_RDONLY | os.O_DIRECTORY, dir_fd=fd)
        os.close(fd)
        fd = deeper
    with pytest.raises(OSError, match="too long"):
        os.readlink(f"/proc/self/fd/{fd}")
    assert paths("/", fd) == "f"
