"""The worker's side of a page: maps it, reads the requests, and reports each step of the work."""

from __future__ import annotations

import errno
import mmap
import os
import time
from typing import TYPE_CHECKING, Final

from ktaskfs.errors import InvalidValue
from ktaskfs.progress.holder import mark_as_worker
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
from ktaskfs.progress.snapshot import FoundWhy, Phase, Requests, ThreadState
from ktaskfs.result import RESULT_MAX
from ktaskfs.units import printable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ktaskfs.span import Node

# Computed once, because the methods below run at every chunk.
_RANGE_WORDS: Final = RANGE.words
_POSITION_AT: Final = RANGE.at + RANGE.word("position")
_SEQUENCE: Final = SLOT.word("sequence")
_STATE: Final = SLOT.word("state")
_CHUNKS: Final = SLOT.word("chunks")
_UNITS: Final = SLOT.word("units")
_BUSY_US: Final = SLOT.word("busy_us")
_BANKS: Final = (BANK.at, BANK.at + BANK.words)
_NODE: Final = BANK.word("node")
_START: Final = BANK.word("start")
_END: Final = BANK.word("end")
_RUNNING: Final = int(ThreadState.RUNNING)
_NOT_A_PAGE: Final = "not a ktaskfs progress page"


class WorkerPage:
    """Maps the page, and is the Monitor that the framework reports to.

    Only ``chunk_done`` comes without the scheduler's lock, from the thread that has the slot, and nothing else is
    reported of that slot meanwhile; so no lock is needed here.
    """

    def __init__(self, fd: int) -> None:
        """Map the page in ``fd``. Raises OSError, and InvalidValue for any other file."""
        size = os.fstat(fd).st_size // WORD * WORD
        if size < RANGE.at * WORD:
            raise InvalidValue(_NOT_A_PAGE)
        self._fd = fd
        self._words = memoryview(mmap.mmap(fd, size, mmap.MAP_SHARED)).cast("Q")
        identity = IDENTITY.read(self._words, IDENTITY.at)
        self.shape = Shape(identity["slots"], identity["nodes"])
        if identity["magic"] != MAGIC or self.shape.words > len(self._words):
            raise InvalidValue(_NOT_A_PAGE)
        mark_as_worker(fd)
        self._slots = self.shape.each_slot()
        self._found: dict[int, int] = {}  # threads by NUMA node

    def requests(self) -> Requests:
        """The daemon's current requests."""
        return Requests(**REQUESTS.read(self._words, REQUESTS.at))

    def begin(self, ranges: Sequence[Node], total: int) -> None:
        """Announce the work: its ranges (at most ``shape.nodes``) and the units of the whole task.

        The total comes last, because a total without ranges would look like a done task.
        """
        for at, node in zip(self.shape.ranges(len(ranges)), ranges, strict=True):
            RANGE.store(self._words, at, start=node.start, size=node.size, nid=node.nid, position=0)
        self._report(started_ns=time.clock_gettime_ns(time.CLOCK_BOOTTIME), ended_ns=0)
        self._report(ranges=len(ranges), total=total, phase=Phase.RUNNING)

    def end(self, phase: Phase, *, number: int = 0, position: int = 0, message: str = "", result: str = "") -> None:
        """Write the outcome; ``number`` is an errno. The phase is stored last, so that a reader of the phase sees the
        rest.

        A result that cannot be stored (ENOSPC; EFBIG beyond RESULT_MAX or the user's limit) makes DONE a failure.
        """
        data = result.encode("utf-8", "replace")
        try:
            self._store_result(data)
        except OSError as error:
            data = b""
            if phase is Phase.DONE:
                number = error.errno or errno.EIO
                phase, position, message = Phase.FAILED, 0, f"the result cannot be stored: {os.strerror(number)}"
        text = printable(message).encode("utf-8", "replace")[: MESSAGE_BYTES - 1].ljust(MESSAGE_BYTES, b"\0")
        self._words[MESSAGE_AT : MESSAGE_AT + MESSAGE_BYTES // WORD] = memoryview(text).cast("Q")
        self._report(ended_ns=time.clock_gettime_ns(time.CLOCK_BOOTTIME))
        self._report(errno=number, error_position=position, result_size=len(data), phase=phase)

    def _report(self, **values: int) -> None:
        REPORT.store(self._words, REPORT.at, **values)

    def _store_result(self, data: bytes) -> None:
        if len(data) > RESULT_MAX:
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
        stored = 0
        while stored < len(data):
            stored += os.pwrite(self._fd, data[stored:], self.shape.size + stored)

    def _flip(self, at: int, node: int, start: int, end: int) -> None:
        """Write a chunk into the inactive bank, and then activate it. ``at`` is the slot's first word."""
        words = self._words
        sequence = words[at + _SEQUENCE] + 1
        bank = at + _BANKS[sequence & 1]
        words[bank + _NODE] = node
        words[bank + _START] = start
        words[bank + _END] = end
        words[at + _SEQUENCE] = sequence

    def thread_started(self, slot: int, tid: int, nid: int) -> None:
        SLOT.store(self._words, self._slots[slot], state=ThreadState.IDLE, tid=tid, nid=nid)

    def chunk_assigned(self, slot: int, node: int, start: int, end: int) -> None:
        at = self._slots[slot]
        self._flip(at, node, start, end)
        self._words[at + _STATE] = _RUNNING

    def node_advanced(self, node: int, position: int) -> None:
        self._words[_POSITION_AT + node * _RANGE_WORDS] = position

    def chunk_done(self, slot: int, node: int, start: int, end: int, busy_ns: int) -> None:
        words, at = self._words, self._slots[slot]
        words[at + _CHUNKS] += 1
        words[at + _UNITS] += end - start
        words[at + _BUSY_US] += busy_ns // 1000
        self._flip(at, node, end, end)

    def chunk_failed(self, slot: int, node: int, start: int, end: int) -> None:
        at = self._slots[slot]
        self._flip(at, node, start, end)  # an interrupt may fail a chunk that was just reported done
        self._words[at + _STATE] = ThreadState.FAILED

    def thread_waits(self, slot: int, why: str) -> None:
        state = ThreadState.PAUSED if why == "paused" else ThreadState.THROTTLED
        self._words[self._slots[slot] + _STATE] = state

    def threads_found(self, nid: int, threads: int, why: str) -> None:
        self._found[nid] = threads
        # The reason is stored last, so that a reader of the reason sees the rest.
        self._report(found=sum(self._found.values()), found_nid=nid, found_why=FoundWhy[why.upper()])

    def undo_started(self) -> None:
        self._report(undone=True)

    def thread_ended(self, slot: int) -> None:
        at = self._slots[slot] + _STATE
        if self._words[at] != ThreadState.FAILED:
            self._words[at] = ThreadState.ENDED
