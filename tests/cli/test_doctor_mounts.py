"""What ``ktaskfs doctor`` says about a real hugetlbfs."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

import pytest

from ktaskfs.cli.check_pools import check_mounts
from ktaskfs.cli.machine import MachineFiles
from ktaskfs.units import format_size
from tests.support import filesystems

if TYPE_CHECKING:
    from pathlib import Path


def test_no_inode_is_left(root: None, area: Path) -> None:
    """The kernel tells it only of a mount with size= or min_size=."""
    size = filesystems.page_sizes()[0]
    with filesystems.hugetlbfs(area / "few", size, f"nr_inodes=1,size={size}") as few:
        with pytest.raises(OSError, match="No space left") as caught:
            (few / "file").touch()
        assert caught.value.errno == errno.ENOSPC
        (found,) = (each for each in check_mounts(MachineFiles()) if each.text.startswith(f"{few}:"))
    assert found.text == f"{few}: pages of {format_size(size)}, but no inode is left for another file"
    assert (found.is_wrong, found.mend) == (True, f"find {few} -type f  # and remove what nobody needs")
