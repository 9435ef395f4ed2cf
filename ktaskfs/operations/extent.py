"""The range of one file that an operation works on: checked, split over nodes, cut into chunks."""

from __future__ import annotations

import errno
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ktaskfs.errors import InvalidValue, TargetError
from ktaskfs.host.topology import read_nodes
from ktaskfs.ktask import NO_NODE, Node
from ktaskfs.units import format_size

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from ktaskfs.host.kernel import Kernel
    from ktaskfs.operations.operation import Range
    from ktaskfs.operations.parameters import RangeParameters


@dataclass(frozen=True)
class Extent:
    """Bytes ``start`` to ``end`` (exclusive) of a file."""

    start: int
    end: int

    @property
    def size(self) -> int:
        """Bytes in it."""
        return self.end - self.start

    def widened(self, unit: int) -> Extent:
        """The least extent of whole ``unit``s around it."""
        return Extent(self.start - self.start % unit, -(-self.end // unit) * unit)


@dataclass(frozen=True)
class ChunkSizes:
    """The least and the greatest chunk in bytes; both are multiples of ``align``."""

    least: int
    most: int
    align: int


def resolve_extent(parameters: RangeParameters, size: int, *, may_grow: bool) -> Extent:
    """The range that a spec means on a file of ``size`` bytes.

    Raises InvalidValue for an empty range, and, unless the operation ``may_grow`` the file, one past its end.
    """
    if parameters.length is None and parameters.offset >= size:
        what = "length is missing" if may_grow else "there is nothing to do"
        raise InvalidValue(f"{what}: {parameters.path} has {size} bytes and the range begins at {parameters.offset}")
    extent = Extent(parameters.offset, size if parameters.length is None else parameters.offset + parameters.length)
    if extent.end > size and not may_grow:
        raise InvalidValue(f"the range ends at {extent.end}, past the end of {parameters.path}: it has {size} bytes")
    return extent


def require_whole_pages(extent: Extent, page_size: int, path: str) -> None:
    """Raises InvalidValue unless the extent begins and ends at multiples of ``page_size``."""
    for name, value in (("offset", extent.start), ("length", extent.size)):
        if value % page_size:
            raise InvalidValue(f"{name} {value} is not a multiple of {format_size(page_size)}, the page size of {path}")


def make_nodes(
    kernel: Kernel, extent: Extent, nodes: Sequence[int] | None, unit: int, remaining: Sequence[Range] | None
) -> tuple[Node, ...]:
    """The work as the framework takes it: all of the extent, shared evenly over ``nodes``, or what ``remaining`` says.

    Shares are whole ``unit``s but for the last. Raises InvalidValue for a node that is not there or has no memory, and
    TargetError (ENXIO) for a remaining range outside of the extent, which was larger in the earlier run.
    """
    known = {node.nid for node in read_nodes(kernel) if node.total} if nodes else set()
    for nid in nodes or ():
        if nid not in known:
            raise InvalidValue(f"node {nid} is not there, or has no memory")
    if remaining is not None:
        for each in remaining:
            if not extent.start <= each.start <= each.end <= extent.end:
                raise TargetError(
                    f"{each.start} to {each.end} was left to do, and the range is {extent.start} to {extent.end} now: "
                    "start the task anew",
                    errno=errno.ENXIO,
                )
        return tuple(Node(each.start, each.end - each.start, each.nid) for each in remaining)
    if not nodes:
        return (Node(extent.start, extent.size, NO_NODE),)
    units = -(-extent.size // unit)
    edges = [min(extent.start + units * number // len(nodes) * unit, extent.end) for number in range(len(nodes) + 1)]
    shares = zip(nodes, edges, edges[1:], strict=False)
    return tuple(Node(start, end - start, nid) for nid, start, end in shares if start < end)


def windows(start: int, end: int, size: int) -> Iterator[Extent]:
    """The pieces of a range that multiples of ``size`` cut it into."""
    for position in range(start - start % size, end, size):
        yield Extent(max(position, start), min(position + size, end))


def chunk_sizes(wanted: int | None, *, least: int, most: int, align: int) -> ChunkSizes:
    """An operation's own chunk sizes, or the ``wanted`` least one (the parameter ``chunk``) rounded up to ``align``."""
    lower = max(-(-(least if wanted is None else wanted) // align) * align, align)
    return ChunkSizes(lower, max(most // align * align, lower), align)
