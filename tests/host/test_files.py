"""What a file hides behind its size."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ktaskfs.host.files import hides_data

if TYPE_CHECKING:
    from tests.support.daemon import Mount


@pytest.mark.parametrize(("content", "hidden"), [(b"", False), (b"x", False)])
def test_an_ordinary_file_hides_nothing(tmp_path: Path, content: bytes, hidden: bool) -> None:
    (tmp_path / "file").write_bytes(content)
    with (tmp_path / "file").open("rb") as file:
        assert hides_data(file.fileno()) is hidden


def test_a_virtual_file_hides_data() -> None:
    with Path("/proc/version").open("rb") as file:
        assert hides_data(file.fileno())
