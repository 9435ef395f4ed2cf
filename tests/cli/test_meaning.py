"""Whether two texts of a parameter mean the same, by its type."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from ktaskfs.cli.meaning import alike

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("one", "other", "kind"),
    [
        ("64G", "68719476736", "size"),
        ("max", "max", "size|max"),
        ("16", "0x10", "number"),
        ("0-1", "1,0", "cpulist"),
        ("a55a", "A55A", "hex"),
        ("a55a", "0xA55A", "hex"),
        ("0600", "600", "mode"),
        ("0x7f0000000000", "139637976727552", "address|all"),
        ("/dev/shm/a", "/dev//shm/./a/", "path"),
        ("yes", "yes", "word"),
    ],
)
def test_alike(one: str, other: str, kind: str) -> None:
    assert alike(one, other, kind)


@pytest.mark.parametrize(
    ("one", "other", "kind"),
    [
        ("64G", "64M", "size"),
        ("-", "0", "size"),
        ("max", "1", "number|max"),
        ("0-1", "0", "cpulist"),
        ("11", "0011", "hex"),
        ("1e", "1E0000", "hex"),
        ("0600", "0660", "mode"),
        ("1K", "1024", "word"),
        ("16", "0x10", "path"),
        ("/link/../a", "/a", "path"),
    ],
)
def test_not_alike(one: str, other: str, kind: str) -> None:
    assert not alike(one, other, kind)


def test_a_relative_path_is_below_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert alike(f"{tmp_path}/file", "file", "path")
    assert alike(f"{tmp_path}/../file", "../file", "path")
