"""On which NUMA node the pages of a file of memory are, from a sample, or will be: so that threads work beside them."""

from __future__ import annotations

import contextlib
import errno
import random
from collections import Counter
from itertools import groupby
from typing import TYPE_CHECKING, Final

from ktaskfs.host import numa_pages, syscalls
from ktaskfs.host.mapping import HoleGuard, Mapping
from ktaskfs.host.target import MEMORY, AbsentTarget, FilesystemType
from ktaskfs.host.topology import nodes_with_cpus
from ktaskfs.span import NO_NODE, Node, Span

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from ktaskfs.host.kernel import Kernel
    from ktaskfs.host.target import Target

LEAST: Final = 64 << 20
"""Bytes of a range that is worth a look: its work takes longer than the look."""
WINDOWS: Final = 64
"""Maximum of equal parts of the range, each of which counts as on the node of most of its pages."""
PART: Final = 32 << 20
"""Minimum bytes of a part. A look at one takes 35 to 65 µs, its work with two threads 1 ms or more."""
EACH: Final = 8
"""Pages of each part that are looked at, at random places: pages may be spread over the nodes in turn."""
AGREED: Final = 0.75
"""Share of the pages that must be on the node of their part. Of pages spread over two nodes it is 0.64."""
RANGES_MAX: Final = 16
"""The most ranges; with more, threads would move between nodes too often."""


def nodes_of_pages(kernel: Kernel, target: Target, extent: Span, unit: int) -> tuple[Node, ...]:
    """The range as work for threads of the nodes where its pages are; the ranges begin at multiples of ``unit`` in it.

    Empty if that is unknown, or of no use: on a machine with one node, for a short range, for a file of another kind,
    for pages that are spread over the nodes. It allocates no page, and is wrong about some.
    """
    if extent.size < LEAST or target.filesystem not in MEMORY or len(known := nodes_with_cpus(kernel)) < 2:
        return ()
    pages = extent.widened(target.page_size)
    try:
        found = _look(target, pages, list(_sample(pages.size // target.page_size, pages.size // PART)))
    except OSError:  # no userfaultfd, no address space, a page that is broken
        return ()
    return _shares(extent, unit, found) if _is_clear(found, known) else ()


def node_of_new_pages(kernel: Kernel, target: Target, extent: Span) -> int:
    """The one node with CPUs on which new pages of the range will be; NO_NODE if that is unknown or of no use.

    It is that of the file's memory policy (tmpfs: mount option ``mpol``, mbind(2)), or the only one that this process
    may use.
    """
    if extent.size < LEAST or isinstance(target, AbsentTarget) or len(known := nodes_with_cpus(kernel)) < 2:
        return NO_NODE
    try:
        nodes = numa_pages.allowed_nodes()
        if target.filesystem is FilesystemType.TMPFS:
            pages = extent.widened(target.page_size)
            with Mapping(target.fd, pages.start, pages.size, reserve=False, private=True) as mapping:
                ends = mapping.address, mapping.address + pages.size - target.page_size
                first, last = map(numa_pages.nodes_of_policy, ends)
            nodes = (first & nodes or nodes) if first == last else frozenset()
    except OSError:  # a container forbids it
        return NO_NODE
    return next(iter(nodes)) if len(nodes) == 1 and nodes <= known else NO_NODE


def _sample(count: int, parts: int) -> Iterator[tuple[int, list[int]]]:
    """Of ``count`` pages in at most ``parts`` windows the first of each, and the pages to look at in it."""
    chance = random.Random(0)
    windows = min(WINDOWS, count, parts)
    for number in range(windows):
        window = range(count * number // windows, count * (number + 1) // windows)
        yield window.start, sorted(chance.sample(window, min(EACH, len(window))))


def _look(target: Target, extent: Span, sample: Sequence[tuple[int, list[int]]]) -> list[tuple[int, Counter[int]]]:
    """For each window its position and the nodes of its pages, without holes. Raises OSError."""
    with (
        contextlib.closing(HoleGuard()) as guard,
        Mapping(target.fd, extent.start, extent.size, reserve=False, private=True) as mapping,
    ):
        guard.guard(mapping)
        windows = []
        for first, pages in sample:
            places = [mapping.address + page * target.page_size for page in pages]
            present = [place for place in places if _is_present(place, target.page_size)]
            nodes = Counter(node for node in numa_pages.page_nodes(present) if node >= 0)
            windows.append((extent.start + first * target.page_size, nodes))
    return windows


def _is_present(address: int, page_size: int) -> bool:
    """Map the page at ``address``; False for a hole. Raises OSError."""
    number = syscalls.try_madvise(address, page_size, syscalls.MADV_POPULATE_READ)
    if number not in (0, errno.EFAULT):
        raise OSError(number, "no page")
    return number == 0


def _is_clear(found: Sequence[tuple[int, Counter[int]]], known: frozenset[int]) -> bool:
    """Whether the pages of most windows are on one node each, with CPUs."""
    most = sum(max(nodes.values(), default=0) for _, nodes in found)
    total = sum(nodes.total() for _, nodes in found)
    return total > 0 and most >= AGREED * total and all(nodes.keys() <= known for _, nodes in found)


def _shares(extent: Span, unit: int, found: Sequence[tuple[int, Counter[int]]]) -> tuple[Node, ...]:
    """The windows, joined where they are on the same node. A window of holes belongs to the one before."""
    # Not by most_common(1), which imports a module: a worker has given up the right to read one.
    placed = [(at, max(nodes, key=lambda nid: nodes[nid])) for at, nodes in found if nodes]
    runs = [(nid, next(group)[0]) for nid, group in groupby(placed, key=lambda each: each[1])]
    if len(runs) > RANGES_MAX:
        return ()
    starts = [extent.start + max(at - extent.start + unit // 2, 0) // unit * unit for _, at in runs]
    edges = [extent.start, *(min(start, extent.end) for start in starts[1:]), extent.end]
    shares = zip(runs, edges, edges[1:], strict=False)
    return tuple(Node(start, end - start, nid) for (nid, _), start, end in shares if start < end)
