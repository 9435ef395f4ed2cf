"""What a file hides behind its size."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from ktaskfs.host.files import hides_data


@pytest.mark.parametrize("content", [b"", b"x"])
def test_an_ordinary_file_hides_nothing(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "file").write_bytes(content)
    with (tmp_path / "file").open("rb") as file:
        assert not hides_data(file.fileno())


def test_a_virtual_file_hides_data() -> None:
    with Path("/proc/version").open("rb") as file:
        assert hides_data(file.fileno())


def test_a_stream_of_size_0_hides_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A task's ``wait`` is a regular file that cannot seek."""

    def pread(fd: int, count: int, position: int) -> bytes:
        raise OSError(errno.ESPIPE, os.strerror(errno.ESPIPE))

    monkeypatch.setattr(os, "pread", pread)
    (tmp_path / "stream").touch()
    with (tmp_path / "stream").open("rb") as file:
        assert hides_data(file.fileno())
