"""Huge pages for a test: added to the machine's pool, and taken out again."""

from __future__ import annotations

import contextlib
import fcntl
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, TextIO

import pytest

from tests.support import filesystems
from tests.support.poll import until

if TYPE_CHECKING:
    from collections.abc import Iterator

LOCK: Final = Path("/run/ktaskfs-test-pool.lock")
"""Held while a pool is changed and used, so that tests of several processes do not take each other's pages."""


smallest_pages = pytest.mark.parametrize(
    "page_size", filesystems.page_sizes()[:1], ids=lambda size: f"{size >> 20}M", indirect=True
)
"""For a test to which the page size makes no difference: a gigantic page can take seconds to be had."""


@dataclass(frozen=True)
class TestPool:
    """Pages of one size that a test may use up. ``pages`` is how many were added."""

    __test__ = False

    page_size: int
    pages: int

    def _count(self, name: str) -> int:
        return int((_directory(self.page_size) / name).read_text())

    @property
    def free(self) -> int:
        """Free pages now, reserved ones included."""
        return self._count("free_hugepages")

    @property
    def reserved(self) -> int:
        """Pages promised to mappings now."""
        return self._count("resv_hugepages")

    @property
    def available(self) -> int:
        """Pages that a new mapping can have now."""
        return self.free - self.reserved

    @property
    def taken(self) -> int:
        """Pages that are used or promised now; free pages that others add or take off are not in it."""
        return self.total - self.available

    @property
    def total(self) -> int:
        """Pages in the pool."""
        return self._count("nr_hugepages")


def _directory(page_size: int) -> Path:
    return Path(f"/sys/kernel/mm/hugepages/hugepages-{page_size >> 10}kB")


def resize(page_size: int, by: int) -> None:
    """Add pages to the pool, or remove them; for a test that is ``alone``. The kernel may find no memory for more."""
    file = _directory(page_size) / "nr_hugepages"
    file.write_text(str(max(0, int(file.read_text()) + by)))


def queue_for(lock: Path) -> Path:
    """The file that is locked by the one who is next to have ``lock``."""
    return lock.with_suffix(".queue")


def _holds(lock: TextIO) -> bool:
    """Whether this process has the file locked, by whichever descriptor; proc_locks(5)."""
    own = f"{os.getpid()} {os.major(os.fstat(lock.fileno()).st_dev):02x}:"
    inode = f":{os.fstat(lock.fileno()).st_ino} "
    return any(
        own in line and inode in line and "->" not in line for line in Path("/proc/locks").read_text().splitlines()
    )


@contextlib.contextmanager
def alone(file: Path = LOCK) -> Iterator[None]:
    """No other test changes a pool meanwhile. A process that has just had the lock gets it after those that wait.

    Raises AssertionError if this process has the pool's lock already: it would wait for itself.
    """
    with queue_for(file).open("w") as queue, file.open("w") as lock:
        assert file != LOCK or not _holds(lock), "a fixture of this process has the pool already"
        fcntl.flock(queue, fcntl.LOCK_EX)
        fcntl.flock(lock, fcntl.LOCK_EX)
        fcntl.flock(queue, fcntl.LOCK_UN)
        yield


@contextlib.contextmanager
def reserved(page_size: int, pages: int) -> Iterator[TestPool]:
    """Add ``pages`` pages to the pool, with the pool's lock; skips the test without root or enough memory.

    At the end the pages must be free again (otherwise the test has left something), and the added number is removed.
    With 0 pages the test changes the pool itself, and the pool then gets its old size.
    """
    if os.geteuid() != 0:
        pytest.skip("only root can reserve huge pages")
    with alone():
        pool = TestPool(page_size, pages)
        total, taken, added = pool.total, pool.taken, 0
        try:
            resize(page_size, pages)
            added = max(0, pool.total - total)
            # A long-lived machine is fragmented: make room for gigantic pages. Other tests look at the page cache
            # meanwhile, so it is dropped only if nothing else helps.
            for caches in (False, True):
                if added < pages:
                    if caches:
                        Path("/proc/sys/vm/drop_caches").write_text("3")
                    Path("/proc/sys/vm/compact_memory").write_text("1")
                    resize(page_size, pages - added)
                    added = max(0, pool.total - total)
            if added < pages:
                pytest.skip(f"this machine has no memory for {pages} huge pages of {page_size >> 20} MiB")
            yield pool
            until(lambda: pool.taken <= taken, "every huge page of the test free again")
        finally:
            resize(page_size, -added if pages else total - pool.total)
