"""The contents of a page as values: the daemon's requests, and the worker's report at one moment."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property
from typing import NamedTuple

from ktaskfs.span import NO_NODE, Node, Span


class Phase(IntEnum):
    """The phase reported by the worker; everything from DONE on is an end."""

    STARTING = 0
    RUNNING = 1
    DONE = 2
    FAILED = 3
    CANCELLED = 4


class ThreadState(IntEnum):
    """The state of a thread slot."""

    UNUSED = 0
    RUNNING = 1
    PAUSED = 2
    THROTTLED = 3
    FAILED = 4
    ENDED = 5
    IDLE = 6


class FoundWhy(IntEnum):
    """The reason for a task's number of threads."""

    UNKNOWN = 0
    TRYING = 1
    ENOUGH = 2
    MOST = 3


class Requests(NamedTuple):
    """The daemon's requests to the worker. ``threads`` 0 and ``rate`` 0 mean no limit."""

    cancel: bool = False
    paused: bool = False
    threads: int = 0
    rate: int = 0
    nice: int = 19


class NodeProgress(NamedTuple):
    """One range of the work; ``position`` is how many of its ``size`` units were handed out."""

    start: int
    size: int
    nid: int
    position: int


class ThreadProgress(NamedTuple):
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
    """The worker's whole report at one moment, checked. Times are CLOCK_BOOTTIME nanoseconds."""

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
    found: int = 0
    """Threads that help, on all nodes; 0: unknown."""
    found_nid: int = NO_NODE
    """The NUMA node of the last finding, or NO_NODE."""
    found_why: FoundWhy = FoundWhy.UNKNOWN
    """The reason for the last finding."""

    def remaining(self) -> tuple[Node, ...]:
        """The unfinished ranges: chunks in flight or failed, and units never handed out.

        All ranges, after the worker has begun to undo its work.
        """
        if self.undone:
            return tuple(Node(node.start, node.size, node.nid) for node in self.nodes)
        left: list[Node] = []
        chunks = defaultdict[int, list[Span]](list)  # by range: there may be thousands
        for each in self.threads:
            chunks[each.node].append(Span(each.start, each.end))
        for index, node in enumerate(self.nodes):
            given = [each.cut(Span(0, node.position)) for each in sorted(chunks.get(index, ()))]
            for part in [*(one for one in given if one.size > 0), Span(node.position, node.size)]:
                if left and left[-1].nid == node.nid and left[-1].end == node.start + part.start:
                    left[-1] = Node(left[-1].start, left[-1].size + part.size, node.nid)
                elif part.size > 0:
                    left.append(Node(node.start + part.start, part.size, node.nid))
        return tuple(left)

    @cached_property
    def done(self) -> int:
        """Units finished; never more than ``total``."""
        return max(0, self.total - sum(node.size for node in self.remaining()))
