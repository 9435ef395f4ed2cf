"""A pool of huge pages for the length of a measurement."""

from __future__ import annotations

import contextlib
import fcntl
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

LOCK: Final = Path("/run/ktaskfs-test-pool.lock")
"""Hold this to change the pool for a test or a measurement, so that they do not disturb each other."""


@contextlib.contextmanager
def reserved(page_size: int, size: int, nodes: Sequence[int] = ()) -> Iterator[None]:
    """Add pages for ``size`` bytes to the pool, or to that of each of the nodes, and take as many out at the end.

    RuntimeError if there are too few.
    """
    places = [f"/sys/devices/system/node/node{node}" for node in nodes] or ["/sys/kernel/mm"]
    with LOCK.open("w") as lock, contextlib.ExitStack() as stack:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for place in places:
            counter = Path(place, f"hugepages/hugepages-{page_size >> 10}kB/nr_hugepages")
            stack.enter_context(_more(counter, page_size, size))
        yield


@contextlib.contextmanager
def _more(counter: Path, page_size: int, size: int) -> Iterator[None]:
    before = int(counter.read_text())
    wanted = -(-size // page_size)
    counter.write_text(str(before + wanted))
    got = int(counter.read_text()) - before
    try:
        if got < wanted:
            raise RuntimeError(f"only {got} of {wanted} pages of {page_size} bytes could be reserved")
        yield
    finally:
        counter.write_text(str(max(0, int(counter.read_text()) - got)))
