"""The page that a daemon and one worker share: requests one way, progress the other, no message and no lock.

The worker maps the file; the daemon only ever uses pread and pwrite on it, and takes nothing that it reads for
granted, because whoever owns the worker's uid may scribble on it. Every field is an aligned 64-bit word with one
writer; by word:

    0     identity    written once, at creation: magic, number of slots, number of ranges
    8     requests    written by the daemon: cancel, paused, threads, rate, nice
    32    report      written by the worker: phase, times, totals, error, undone
    64    message     of the error, as bytes
    512   ranges      8 words for each range of the work: start, size, nid, position
    ...   slots       16 words for each thread
    end   result      the text of ``result``, appended by the worker at its end with pwrite

What is done survives a SIGKILL of the worker at any instruction. A slot holds two banks for the chunk in flight
and a sequence number whose lowest bit says which one counts; that number is one aligned 8-byte store. The chunk
is put into a slot before its range's position moves past it, so a unit is at any time beyond the position, or in
a slot, or both, until it is done. A reader that copies a slot while its bank flips sees the sequence number
change, and copies again.
"""

from __future__ import annotations

import errno
import mmap
import os
import time
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, Final

from ktaskfs.errors import InvalidValue
from ktaskfs.span import NO_NODE, Node

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

WORD: Final = 8
MAGIC: Final = int.from_bytes(b"ktaskpg1", "little")
_REQUESTS_AT: Final = 8
_REPORT_AT: Final = 32
_MESSAGE_AT: Final = 64
_MESSAGE_BYTES: Final = 1024
_NODES_AT: Final = 512
_NODE_WORDS: Final = 8
_SLOT_WORDS: Final = 16
_BANKS_AT: Final = 8
_BANK_WORDS: Final = 4
_MASK: Final = 2**64 - 1
RESULT_MAX: Final = 1 << 20
"""Bytes of result text that the daemon reads at most."""


def _signed(word: int) -> int:
    return word - 2**64 if word >> 63 else word


class Phase(IntEnum):
    """How far the worker itself says it is; everything from DONE on is an end."""

    STARTING = 0
    RUNNING = 1
    DONE = 2
    FAILED = 3
    CANCELLED = 4


class ThreadState(IntEnum):
    """What a thread slot is doing."""

    UNUSED = 0
    RUNNING = 1
    PAUSED = 2
    THROTTLED = 3
    FAILED = 4
    ENDED = 5
    IDLE = 6


@dataclass(frozen=True)
class Requests:
    """What the daemon asks of the worker. ``threads`` 0 and ``rate`` 0 mean no limit of their own."""

    cancel: bool = False
    paused: bool = False
    threads: int = 0
    rate: int = 0
    nice: int = 19


@dataclass(frozen=True)
class NodeProgress:
    """One range of the work; ``position`` is how many of its ``size`` units were handed out."""

    start: int
    size: int
    nid: int
    position: int


@dataclass(frozen=True)
class ThreadProgress:
    """One thread: ``node`` indexes the ranges, ``start`` and ``end`` are ordinals in that range (equal if idle)."""

    slot: int
    tid: int
    nid: int
    state: ThreadState
    chunks: int
    units: int
    busy_us: int
    node: int
    start: int
    end: int


@dataclass(frozen=True)
class Snapshot:
    """Everything the worker reports, at one moment, already checked. Times are CLOCK_BOOTTIME nanoseconds."""

    phase: Phase
    started_ns: int
    ended_ns: int
    total: int
    errno: int
    error_position: int
    message: str
    result_size: int
    undone: bool
    nodes: tuple[NodeProgress, ...]
    threads: tuple[ThreadProgress, ...]

    def remaining(self) -> tuple[Node, ...]:
        """The ranges not known to be finished: chunks in flight or failed, and what was never handed out.

        All of them, once taking back what was done has begun.
        """
        if self.undone:
            return tuple(Node(node.start, node.size, node.nid) for node in self.nodes)
        left: list[Node] = []
        for index, node in enumerate(self.nodes):
            loose = sorted(
                (each.start, min(each.end, node.position))
                for each in self.threads
                if each.node == index and each.start < min(each.end, node.position)
            )
            for start, end in [*loose, (node.position, node.size)]:
                if left and left[-1].nid == node.nid and left[-1].end == node.start + start:
                    left[-1] = Node(left[-1].start, left[-1].size + end - start, node.nid)
                elif start < end:
                    left.append(Node(node.start + start, end - start, node.nid))
        return tuple(left)

    @property
    def done(self) -> int:
        """Units finished; never more than ``total``."""
        return max(0, self.total - sum(node.size for node in self.remaining()))


@dataclass(frozen=True)
class Shape:
    """How many threads and ranges a page has room for."""

    slots: int
    nodes: int

    @property
    def slots_at(self) -> int:
        """The word where the slots begin."""
        return _NODES_AT + self.nodes * _NODE_WORDS

    @property
    def words(self) -> int:
        return self.slots_at + self.slots * _SLOT_WORDS

    @property
    def size(self) -> int:
        """Bytes, without the result."""
        return self.words * WORD


def create_page(path: str, shape: Shape, requests: Requests) -> int:
    """Make the file with all its blocks, so that no later store can meet a full filesystem; returns a descriptor.

    Raises OSError (ENOSPC among them), and then leaves no file.
    """
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.posix_fallocate(fd, 0, shape.size)
        os.pwrite(fd, _packed((MAGIC, shape.slots, shape.nodes)), 0)
        write_requests(fd, requests)
    except OSError:
        os.close(fd)
        os.unlink(path)
        raise
    return fd


def _packed(words: Sequence[int]) -> bytes:
    return b"".join((word & _MASK).to_bytes(WORD, "little") for word in words)


def write_requests(fd: int, requests: Requests) -> None:
    """Put the daemon's wishes into the page; the worker reads them when it is woken. Raises OSError."""
    words = (requests.cancel, requests.paused, requests.threads, requests.rate, requests.nice)
    os.pwrite(fd, _packed(words), _REQUESTS_AT * WORD)


def read_requests(fd: int) -> Requests:
    """What was last asked, for a daemon that adopts a task of its predecessor. Raises OSError."""
    size = 5 * WORD
    return _requests_from(memoryview(os.pread(fd, size, _REQUESTS_AT * WORD).ljust(size, b"\0")).cast("Q"))


def _requests_from(words: Sequence[int]) -> Requests:
    cancel, paused, threads, rate, nice = words
    return Requests(bool(cancel), bool(paused), threads, rate, _signed(nice))


def read_snapshot(fd: int, shape: Shape) -> Snapshot:
    """Copy and check the page. A page cut short reads as zeros from there on. Raises OSError."""
    copy = _stable_copy(fd, shape)
    words = copy.cast("Q")
    phase, started, ended, total, ranges, number, position, result_size, undone = words[_REPORT_AT : _REPORT_AT + 9]
    message = bytes(copy[_MESSAGE_AT * WORD :][:_MESSAGE_BYTES]).split(b"\0", 1)[0].decode("utf-8", "replace")
    nodes = []
    for at in range(_NODES_AT, _NODES_AT + min(ranges, shape.nodes) * _NODE_WORDS, _NODE_WORDS):
        start, size, nid, handed = words[at : at + 4]
        nodes.append(NodeProgress(start, size, max(_signed(nid), NO_NODE), min(handed, size)))
    return Snapshot(
        phase=Phase(phase) if phase <= max(Phase) else Phase.FAILED,
        started_ns=started,
        ended_ns=ended,
        total=total,
        errno=number if number < 4096 else errno.EIO,
        error_position=_signed(position),
        message="".join(each if each.isprintable() else "?" for each in message),
        result_size=min(result_size, RESULT_MAX),
        undone=bool(undone),
        nodes=tuple(nodes),
        threads=tuple(_threads(words, shape)),
    )


def _threads(words: Sequence[int], shape: Shape) -> Iterator[ThreadProgress]:
    for slot in range(shape.slots):
        at = shape.slots_at + slot * _SLOT_WORDS
        sequence, state, tid, nid, chunks, units, busy_us = words[at : at + 7]
        if state == ThreadState.UNUSED:
            continue
        bank = at + _BANKS_AT + sequence % 2 * _BANK_WORDS
        node, start, end = words[bank : bank + 3]
        known = ThreadState(state) if state <= max(ThreadState) else ThreadState.ENDED
        yield ThreadProgress(slot, tid, _signed(nid), known, chunks, units, busy_us, node, start, end)


def _stable_copy(fd: int, shape: Shape) -> memoryview:
    """Read until two copies agree in every slot's sequence number; after a few tries the copy may be a chunk old."""
    copies = [os.pread(fd, shape.size, 0).ljust(shape.size, b"\0")]
    sequences = slice(shape.slots_at, shape.words, _SLOT_WORDS)
    for _ in range(4):
        copies.append(os.pread(fd, shape.size, 0).ljust(shape.size, b"\0"))
        before, after = (memoryview(each).cast("Q")[sequences].tolist() for each in copies[-2:])
        if before == after:
            break
    return memoryview(copies[-2])


def read_result(fd: int, shape: Shape, snapshot: Snapshot) -> str:
    """The text that the worker left for ``result``. Raises OSError."""
    return os.pread(fd, snapshot.result_size, shape.size).decode("utf-8", "replace")


class WorkerPage:
    """The worker's side: maps the page, and is the Monitor that the framework reports to.

    Each slot has one writer, the thread that owns it, except that ``chunk_assigned`` and ``node_advanced`` come
    under the scheduler's lock; so none is needed here.
    """

    def __init__(self, fd: int) -> None:
        """Map the page in ``fd``; raises OSError, and InvalidValue for a file that is not one."""
        size = os.fstat(fd).st_size // WORD * WORD
        if size < _NODES_AT * WORD:
            raise InvalidValue("the shared page is not one")
        self._fd = fd
        self._words = memoryview(mmap.mmap(fd, size, mmap.MAP_SHARED)).cast("Q")
        magic, slots, nodes = self._words[:3].tolist()
        self.shape = Shape(slots, nodes)
        if magic != MAGIC or self.shape.words > len(self._words):
            raise InvalidValue("the shared page is not one")

    def requests(self) -> Requests:
        """What the daemon asks now."""
        return _requests_from(self._words[_REQUESTS_AT : _REQUESTS_AT + 5].tolist())

    def begin(self, ranges: Sequence[Node], total: int) -> None:
        """Announce the work: its ranges (at most ``shape.nodes``) and the units of the whole task.

        The total comes last: a total without its ranges would look like a task that is done.
        """
        for index, node in enumerate(ranges):
            self._put(_NODES_AT + index * _NODE_WORDS, node.start, node.size, node.nid, 0)
        self._put(_REPORT_AT + 1, time.clock_gettime_ns(time.CLOCK_BOOTTIME), 0)
        self._put(_REPORT_AT + 4, len(ranges))
        self._put(_REPORT_AT + 3, total)
        self._words[_REPORT_AT] = Phase.RUNNING

    def end(self, phase: Phase, *, number: int = 0, position: int = 0, message: str = "", result: str = "") -> None:
        """Write how it ended; ``number`` is an errno. The phase goes last: who sees it sees the rest.

        A result that cannot be stored (ENOSPC, or EFBIG beyond the user's limit) makes DONE a failure.
        """
        data = result.encode("utf-8", "replace")[:RESULT_MAX]
        try:
            self._store_result(data)
        except OSError as error:
            data = b""
            if phase is Phase.DONE:
                number = error.errno or errno.EIO
                phase, position, message = Phase.FAILED, 0, f"the result cannot be stored: {os.strerror(number)}"
        text = message.encode("utf-8", "replace")[: _MESSAGE_BYTES - 1].ljust(_MESSAGE_BYTES, b"\0")
        self._words[_MESSAGE_AT : _MESSAGE_AT + _MESSAGE_BYTES // WORD] = memoryview(text).cast("Q")
        self._put(_REPORT_AT + 2, time.clock_gettime_ns(time.CLOCK_BOOTTIME))
        self._put(_REPORT_AT + 5, number, position, len(data))
        self._words[_REPORT_AT] = phase

    def _store_result(self, data: bytes) -> None:
        stored = 0
        while stored < len(data):
            stored += os.pwrite(self._fd, data[stored:], self.shape.size + stored)

    def _put(self, at: int, *values: int) -> None:
        for index, value in enumerate(values, at):
            self._words[index] = value & _MASK

    def _slot(self, slot: int) -> int:
        return self.shape.slots_at + slot * _SLOT_WORDS

    def _flip(self, slot: int, node: int, start: int, end: int) -> None:
        at = self._slot(slot)
        sequence = self._words[at] + 1
        self._put(at + _BANKS_AT + sequence % 2 * _BANK_WORDS, node, start, end)
        self._words[at] = sequence

    def thread_started(self, slot: int, tid: int, nid: int) -> None:
        self._put(self._slot(slot) + 1, ThreadState.IDLE, tid, nid)

    def chunk_assigned(self, slot: int, node: int, start: int, end: int) -> None:
        self._flip(slot, node, start, end)
        self._words[self._slot(slot) + 1] = ThreadState.RUNNING

    def node_advanced(self, node: int, position: int) -> None:
        self._words[_NODES_AT + node * _NODE_WORDS + 3] = position

    def chunk_done(self, slot: int, node: int, start: int, end: int, busy_ns: int) -> None:
        at = self._slot(slot) + 4
        chunks, units, busy_us = self._words[at : at + 3].tolist()
        self._put(at, chunks + 1, units + end - start, busy_us + busy_ns // 1000)
        self._flip(slot, node, end, end)

    def chunk_failed(self, slot: int, node: int, start: int, end: int) -> None:
        self._flip(slot, node, start, end)  # an interrupt may make a chunk fail that was just called done
        self._words[self._slot(slot) + 1] = ThreadState.FAILED

    def thread_waits(self, slot: int, why: str) -> None:
        self._words[self._slot(slot) + 1] = ThreadState.PAUSED if why == "paused" else ThreadState.THROTTLED

    def undo_started(self) -> None:
        self._words[_REPORT_AT + 8] = 1

    def thread_ended(self, slot: int) -> None:
        at = self._slot(slot) + 1
        if self._words[at] != ThreadState.FAILED:
            self._words[at] = ThreadState.ENDED
