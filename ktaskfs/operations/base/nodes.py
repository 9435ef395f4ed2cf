"""The division of an operation's work into NUMA nodes and chunks."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, NamedTuple

from ktaskfs.errors import InvalidValue, TargetError
from ktaskfs.host.topology import read_nodes
from ktaskfs.span import NO_NODE, Node, Span

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ktaskfs.host.kernel import Kernel


class ChunkSizes(NamedTuple):
    """The smallest and largest chunk in units; both are multiples of ``align``."""

    least: int
    most: int
    align: int


def make_nodes(
    kernel: Kernel, extent: Span, nodes: Sequence[int] | None, unit: int, remaining: Sequence[Node] | None
) -> tuple[Node, ...]:
    """The work for the framework: the whole extent, shared evenly over ``nodes``, or ``remaining``.

    Shares are whole ``unit``s, except the last. Raises InvalidValue for a node that does not exist or has no memory,
    and TargetError (ENXIO) for a remaining range outside of the extent, which was larger in the earlier run.
    """
    known = {node.nid for node in read_nodes(kernel) if node.total} if nodes else set()
    for nid in nodes or ():
        if nid not in known:
            raise InvalidValue(f"node {nid} does not exist or has no memory")
    if remaining is not None:
        for each in remaining:
            if not extent.start <= each.start <= each.end <= extent.end:
                raise TargetError(
                    f"{each.start} to {each.end} is left to do, but the range is now {extent.start} to {extent.end}: "
                    "start a new task",
                    errno=errno.ENXIO,
                )
        return tuple(Node(each.start, each.end - each.start, each.nid) for each in remaining)
    if not nodes:
        return (Node(extent.start, extent.size, NO_NODE),)
    units = -(-extent.size // unit)
    edges = [min(extent.start + units * number // len(nodes) * unit, extent.end) for number in range(len(nodes) + 1)]
    shares = zip(nodes, edges, edges[1:], strict=False)
    return tuple(Node(start, end - start, nid) for nid, start, end in shares if start < end)


def chunk_sizes(wanted: int | None, *, least: int, most: int, align: int) -> ChunkSizes:
    """An operation's own chunk sizes, or the ``wanted`` smallest one (the parameter ``chunk``) rounded up to
    ``align``."""
    lower = max(-(-(least if wanted is None else wanted) // align) * align, align)
    return ChunkSizes(lower, max(most // align * align, lower), align)
