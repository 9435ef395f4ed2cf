"""Mounts for targets: hugetlbfs of one page size, tmpfs with or without huge pages."""

from __future__ import annotations

import contextlib
import os
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from tests.support.poll import until

if TYPE_CHECKING:
    from collections.abc import Iterator

IN_MEMORY: Final = frozenset({"hugetlbfs", "tmpfs"})
EXT4: Final = ("mke2fs", "-t", "ext4")
DISK_SIZE: Final = 320 << 20
"""Bytes of a filesystem in a file: mkfs.xfs(8) makes no smaller one."""


def page_sizes() -> list[int]:
    """The sizes of huge pages this machine has, in bytes, smallest first."""
    names = [path.name for path in Path("/sys/kernel/mm/hugepages").glob("hugepages-*kB")]
    return sorted(int(name.removeprefix("hugepages-").removesuffix("kB")) << 10 for name in names)


@contextlib.contextmanager
def filesystem(kind: str, where: Path, options: str) -> Iterator[Path]:
    """Mount a new ``kind`` on the directory ``where`` (made if missing); unmounted at the end.

    Files in memory are removed first: another test's new mount namespace may have a copy of the mount, which would keep
    their pages.
    """
    where.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", kind, "-o", options, "none", str(where)], check=True)
    try:
        yield where
    finally:
        if kind in IN_MEMORY:
            subprocess.run(["find", str(where), "-xdev", "-mindepth", "1", "-delete"], capture_output=True, check=False)
        until(lambda: _unmounted(where), f"umount {where}: what a test has killed may still be ending")


def _unmounted(where: Path) -> bool:
    return subprocess.run(["umount", str(where)], check=False).returncode == 0


def hugetlbfs(where: Path, page_size: int, options: str = "mode=1777") -> contextlib.AbstractContextManager[Path]:
    """A hugetlbfs whose files have pages of ``page_size`` bytes; the pool is the caller's to reserve."""
    return filesystem("hugetlbfs", where, f"pagesize={page_size},{options}")


def tmpfs(where: Path, size: int, options: str = "mode=1777") -> contextlib.AbstractContextManager[Path]:
    """A tmpfs of ``size`` bytes; ``options`` may say ``huge=always``."""
    return filesystem("tmpfs", where, f"size={size},{options}")


@contextlib.contextmanager
def disk_image(area: Path, *command: str) -> Iterator[Path]:
    """A new filesystem in a file, which ``command`` makes (mke2fs(8), mkfs.xfs(8), mkfs.btrfs(8))."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount")
    image = area / "image"
    image.touch()
    os.truncate(image, DISK_SIZE)
    subprocess.run([*command, "-q", str(image)], check=True)
    where = area / "image mounted"
    where.mkdir()
    subprocess.run(["mount", "-o", "loop", str(image), str(where)], check=True)
    try:
        yield where
    finally:
        until(lambda: _unmounted(where), f"umount {where}: what a test has killed may still be ending")


@contextlib.contextmanager
def public_view(directory: Path) -> Iterator[Path]:
    """``directory`` once more, to read, below directories that every user may search.

    The view is an overlay with an empty directory on top, whose mode is then that of the view's own root.
    """
    with tempfile.TemporaryDirectory(prefix="kt-view-") as above:
        Path(above).chmod(0o755)
        empty = Path(above, "empty")
        empty.mkdir()
        with filesystem("overlay", Path(above, directory.name), f"ro,lowerdir={empty}:{directory}") as view:
            yield view
