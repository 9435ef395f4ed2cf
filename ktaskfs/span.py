"""Intervals of units, with or without a NUMA node: the parts of work in every layer."""

from __future__ import annotations

from dataclasses import dataclass
from operator import index
from typing import TYPE_CHECKING, Any, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

NO_NODE: Final = -1
"""No NUMA node in particular (the kernel's NUMA_NO_NODE)."""


class Span(NamedTuple):
    """Units ``start`` to ``end`` (exclusive): bytes of a file, pages, files of a tree."""

    start: int
    end: int

    @property
    def size(self) -> int:
        """Units in it."""
        return self.end - self.start

    def widened(self, unit: int) -> Span:
        """The smallest span of whole ``unit``s around it; empty if it is empty."""
        start = self.start - self.start % unit
        return Span(start, -(-self.end // unit) * unit if self.size > 0 else start)

    def shifted(self, units: int) -> Span:
        """The span moved by a number of units."""
        return Span(self.start + units, self.end + units)

    def cut(self, other: Span) -> Span:
        """The part that lies in ``other``; its size is not above 0 if there is none."""
        return Span(max(self.start, other.start), min(self.end, other.end))

    def windows(self, size: int) -> Iterator[Span]:
        """Its pieces between multiples of ``size``."""
        for position in range(self.start - self.start % size, self.end, size):
            yield Span(max(position, self.start), min(position + size, self.end))


@dataclass(frozen=True, slots=True)
class Node:
    """A range of work, for threads of one NUMA node (``struct ktask_node``, RFC v1 to v4).

    ``start`` (kn_start) is any object that the task's ``iter_func`` can advance; ``size`` (kn_task_size) counts units
    from there; ``nid`` (kn_nid) is the NUMA node whose threads should do it, or NO_NODE for any. Raises ValueError for
    a negative size, or a node below NO_NODE, and TypeError for one that is no whole number.
    """

    start: Any
    size: int
    nid: int = NO_NODE

    def __post_init__(self) -> None:
        for name in ("size", "nid"):
            object.__setattr__(self, name, index(getattr(self, name)))
        if self.size < 0:
            raise ValueError(f"a node of {self.size} units")
        if self.nid < NO_NODE:
            raise ValueError(f"a node with the number {self.nid}")

    @property
    def end(self) -> Any:
        """``start`` plus ``size``, where positions are numbers."""
        return self.start + self.size
