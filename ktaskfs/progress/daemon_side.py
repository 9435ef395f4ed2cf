"""The daemon's side of a page: creates it, writes requests, and reads the worker's reports."""

from __future__ import annotations

import functools
import os
from typing import TYPE_CHECKING, Final

from ktaskfs.progress.layout import (
    BANK,
    IDENTITY,
    MAGIC,
    MESSAGE_AT,
    MESSAGE_BYTES,
    RANGE,
    REPORT,
    REQUESTS,
    SLOT,
    WORD,
    Shape,
)
from ktaskfs.progress.snapshot import NodeProgress, Requests, Snapshot, ThreadProgress, ThreadState
from ktaskfs.units import printable

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_STATE: Final = SLOT.word("state")
_SEQUENCE: Final = SLOT.word("sequence")


def create_page(path: str, shape: Shape, requests: Requests, *, dir_fd: int | None = None) -> int:
    """Make the file with all its blocks, so that no later store can fail on a full filesystem; returns a descriptor.

    ``path`` is below the directory ``dir_fd``, if that is given. Raises OSError (ENOSPC among them), and then leaves
    no file.
    """
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=dir_fd)
    try:
        lay_out_page(fd, shape, requests)
    except OSError:
        os.close(fd)
        os.unlink(path, dir_fd=dir_fd)
        raise
    return fd


def lay_out_page(fd: int, shape: Shape, requests: Requests) -> None:
    """Make a page of an empty file. Raises OSError."""
    os.posix_fallocate(fd, 0, shape.size)
    identity = {"magic": MAGIC, "slots": shape.slots, "nodes": shape.nodes}
    os.pwrite(fd, IDENTITY.packed(identity), IDENTITY.at * WORD)
    write_requests(fd, requests)


def write_requests(fd: int, requests: Requests) -> None:
    """Put the daemon's requests into the page; the worker reads them when it is woken. Raises OSError."""
    os.pwrite(fd, REQUESTS.packed(requests._asdict()), REQUESTS.at * WORD)


def read_requests(fd: int) -> Requests:
    """The last requests, for a daemon that adopts a task of an earlier one. Raises OSError."""
    size = REQUESTS.words * WORD
    words = memoryview(os.pread(fd, size, REQUESTS.at * WORD).ljust(size, b"\0")).cast("Q")
    return Requests(**REQUESTS.read(words, 0))


def read_snapshot(fd: int, shape: Shape) -> Snapshot:
    """Copy and check the page. A page cut short reads as zeros from there on. Raises OSError."""
    return _checked(_stable_copy(fd, shape), shape)


@functools.lru_cache(maxsize=1)
def _checked(copy: bytes, shape: Shape) -> Snapshot:
    """The checked snapshot of a page. The last one is kept, because a request asks for the text of a task and for its
    changes."""
    words = _words(copy)
    report = REPORT.read(words, REPORT.at)
    ranges = report.pop("ranges")
    message = copy[MESSAGE_AT * WORD : MESSAGE_AT * WORD + MESSAGE_BYTES].split(b"\0", 1)[0].decode("utf-8", "replace")
    return Snapshot(
        message=printable(message),
        nodes=tuple(_range(words, at) for at in shape.ranges(ranges)),
        threads=tuple(_threads(words, shape)),
        **report,
    )


def _range(words: Sequence[int], at: int) -> NodeProgress:
    fields = RANGE.read(words, at)
    return NodeProgress(**fields | {"position": min(fields["position"], fields["size"])})


def _threads(words: Sequence[int], shape: Shape) -> Iterator[ThreadProgress]:
    for slot, at in enumerate(shape.each_slot()):
        if words[at + _STATE] != ThreadState.UNUSED:
            fields = SLOT.read(words, at)
            bank = at + BANK.at + fields.pop("sequence") % 2 * BANK.words
            yield ThreadProgress(slot, **fields, **BANK.read(words, bank))


def _stable_copy(fd: int, shape: Shape) -> bytes:
    """Read until two copies agree in every slot's sequence number; after a few tries the copy may be a chunk old."""
    copies = [os.pread(fd, shape.size, 0).ljust(shape.size, b"\0")]
    sequences = slice(shape.slots_at + _SEQUENCE, shape.words, SLOT.words)
    for _ in range(4):
        copies.append(os.pread(fd, shape.size, 0).ljust(shape.size, b"\0"))
        before, after = copies[-2:]
        if before == after or _words(before)[sequences].tolist() == _words(after)[sequences].tolist():
            break
    return copies[-2]


def _words(copy: bytes) -> memoryview[int]:
    return memoryview(copy).cast("Q")


def read_result(fd: int, shape: Shape, snapshot: Snapshot) -> str:
    """The worker's text for ``result``. Raises OSError."""
    return os.pread(fd, snapshot.result_size, shape.size).decode("utf-8", "replace")
