"""``reserve``: set the size of the pool of huge pages on NUMA nodes."""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from typing import TYPE_CHECKING, Final

from ktaskfs.errors import Finding, InvalidValue, NotSupported, TargetError
from ktaskfs.host.hugepages import NodePool, default_size, open_node_pool, read_pools
from ktaskfs.host.reclaim import RoomMaker, open_drop_caches, open_reclaim
from ktaskfs.host.topology import read_memory, read_nodes
from ktaskfs.operations.base.operation import Operation
from ktaskfs.operations.base.parameters import COUNT, FLAG, LENGTH, TaskParameters, parameter
from ktaskfs.span import Node
from ktaskfs.units import PAGES, Nid, format_size, human_size

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ktaskfs.host.kernel import Kernel
    from ktaskfs.ktask import Outcome
    from ktaskfs.operations.base.plan import Plan, Preparation

LEAST_BYTES: Final = 64 << 20
MOST_BYTES: Final = 1 << 30
"""Bytes that one chunk adds or removes. 1 GiB takes milliseconds from free memory, and seconds if the kernel
must move other pages."""
FIRST: Final = "first"
AGAIN: Final = "again"
RECLAIM: Final = "reclaim"
DROP_CACHES: Final = "drop_caches"
WAYS: Final = (FIRST, AGAIN, RECLAIM, DROP_CACHES)
"""Ways to get more pages for a pool, in this order, each for the still missing pages.

A second request often succeeds where the first failed. Compacting memory first did not help (measured).
"""
HEADROOM_PERCENT: Final = 5
HEADROOM_BYTES: Final = 512 << 20
"""Memory that the machine keeps, whichever is more: some programs, and the kernel, need more at times."""


class ReserveParameters(TaskParameters):
    """The number, size and ``nodes`` of the pages."""

    pages: int = parameter(COUNT, "total pages of the pool on all of the nodes, shared evenly")
    size: int | None = parameter(
        LENGTH, "size of the pages (default: the machine's default huge page)", default=None, is_target=True
    )
    undo: bool = parameter(FLAG, "if it fails or is cancelled, restore the pools; 0: keep the pages", default=True)
    reclaim: bool = parameter(FLAG, "if too few, reclaim page cache of the nodes (Linux 6.18)", default=False)
    drop_caches: bool = parameter(
        FLAG, "if still too few, drop all clean caches of the machine, which slows all processes", default=False
    )
    force: bool = parameter(FLAG, "try even if the machine needs the memory itself (0: ENOMEM)", default=False)


class Reserve(Operation[ReserveParameters]):
    """Changes each node's ``nr_hugepages`` in steps, never beyond the goal, so two tasks with the same goal agree.

    The kernel changes the pool of one page size for one caller at a time (``resize_lock`` of struct hstate), so
    nodes take turns. The kernel never removes pages in use: a pool that shrinks below them counts them as surplus
    until they are freed (Documentation/admin-guide/mm/hugetlbpage.rst).
    """

    name = "reserve"
    description = (
        "Grow or shrink the pool of huge pages on the nodes to the given number of pages. The rights in your own /sys "
        "apply. Refused with ENOMEM if it would leave the machine less than 5 % of its memory, or less than 512 MiB, "
        "unless force=1. If the kernel gives too few, the task asks again while the number grows; then reclaim=1 and "
        "drop_caches=1 make room, in this order. The task fails with ENOMEM if the kernel finds no memory for more, "
        "or if somebody else takes pages away; it then restores the pools, unless undo=0. The result has the number "
        "of pages, and how many each step added."
    )
    units = PAGES
    parameters = ReserveParameters

    def prepare(self, preparation: Preparation[ReserveParameters]) -> Plan:
        """Open each node's pool; raises InvalidValue for an unknown node or page size, TargetError (EACCES, EROFS, and
        ENOMEM if memory is too small).

        Of ``remaining`` only the nodes count: each pool itself shows its distance from the goal.
        """
        kernel, parameters, remaining = preparation.kernel, preparation.parameters, preparation.remaining
        size = default_size(kernel) if parameters.size is None else parameters.size
        sizes = [pool.size for pool in read_pools(kernel)]
        if size not in sizes:
            there = ", ".join(map(format_size, sizes)) or "none at all"
            raise InvalidValue(f"there are no huge pages of {format_size(size)} here; the sizes are: {there}")
        shares = _open_pools(preparation, size)
        if not parameters.force:
            _require_memory(kernel, shares, placed=parameters.nodes is not None)
        reserver = _Reserver(shares, take_back=parameters.undo)
        nodes = reserver.work(None if remaining is None else {each.nid for each in remaining})
        least, most = max(LEAST_BYTES // size, 1), max(MOST_BYTES // size, 1)
        control = preparation.control(reserver.step, least=least, most=most, undo_func=reserver.undo)
        return preparation.plan(nodes, control, reserver.finish)


def _open_pools(preparation: Preparation[ReserveParameters], size: int) -> list[_Share]:
    kernel, parameters = preparation.kernel, preparation.parameters
    known = [node.nid for node in read_nodes(kernel) if node.total]
    nids = known if parameters.nodes is None else parameters.nodes
    shares: list[_Share] = []
    rooms = _open_rooms(preparation, [nid for nid in nids if nid in known])
    try:
        for index, nid in enumerate(nids):
            if nid not in known:
                raise InvalidValue(f"node {nid} does not exist or has no memory")
            wanted = parameters.pages * (index + 1) // len(nids) - parameters.pages * index // len(nids)
            shares.append(_Share(preparation.keep(open_node_pool(size, nid)), nid, size, wanted, rooms[nid]))
    except OSError as error:
        if error.errno == errno.ENOENT:
            raise NotSupported("your /sys shows no pools of single NUMA nodes") from error
        whose = ", only root may change a pool" if error.errno in (errno.EACCES, errno.EPERM) else ""
        raise TargetError(
            f"open the pool of node {nid}: {os.strerror(error.errno or 0)}{whose}", errno=error.errno
        ) from error
    return shares


def _open_rooms(preparation: Preparation[ReserveParameters], nids: Sequence[int]) -> dict[int, dict[str, RoomMaker]]:
    """The ways to make room on each node, by the column of the result, in order. Raises TargetError (EACCES, EROFS)."""
    parameters, rooms = preparation.parameters, {nid: dict[str, RoomMaker]() for nid in nids}
    try:
        for nid in nids if parameters.reclaim else ():
            reclaim = open_reclaim(nid)
            if reclaim is not None:
                rooms[nid][RECLAIM] = preparation.keep(reclaim)
        if parameters.drop_caches:
            caches = preparation.keep(open_drop_caches())
            for each in rooms.values():
                each[DROP_CACHES] = caches
    except OSError as error:
        raise TargetError.from_os(error, "open the reclaim files of your /sys and /proc") from error
    return rooms


def _require_memory(kernel: Kernel, shares: Sequence[_Share], *, placed: bool) -> None:
    """Raises TargetError (ENOMEM) for more than the machine can spare or, if ``placed``, than its node has."""
    memory, missing = read_memory(kernel), sum(share.missing for share in shares)
    headroom = max(memory.total * HEADROOM_PERCENT // 100, HEADROOM_BYTES)
    if missing and missing > memory.available - headroom:
        raise TargetError(
            f"the pool needs {human_size(missing)} more; {human_size(memory.available)} of memory is available, and "
            f"the machine keeps {human_size(headroom)}: force=1 tries anyway",
            errno=errno.ENOMEM,
        )
    nodes = {node.nid: node for node in read_nodes(kernel)}
    for share in shares if placed else ():
        has = nodes[Nid(share.nid)].free + nodes[Nid(share.nid)].reclaimable
        if share.missing > has:
            raise TargetError(
                f"the pool of node {share.nid} needs {human_size(share.missing)} more, but the node has "
                f"{human_size(has)} free or reclaimable: force=1 tries anyway",
                errno=errno.ENOMEM,
            )


class _Share:
    """One node's part. Threads of this task take turns at its pool, under ``lock``."""

    def __init__(self, pool: NodePool, nid: int, size: int, wanted: int, rooms: Mapping[str, RoomMaker]) -> None:
        self.pool = pool
        self.nid = nid
        self.size = size
        self.wanted = wanted
        self._rooms = rooms
        self.gained = dict.fromkeys(WAYS, 0)
        """Pages from each way; guarded by lock."""
        self.before = pool.persistent()
        self.lock = threading.Lock()
        self.moved: dict[int, int] = {}  # pages that a failed step moved, by its first position; guarded by lock

    @property
    def missing(self) -> int:
        """Bytes that the pool needs from the machine; surplus pages exist already."""
        return self.size * max(self.wanted - self.pool.counts().total, 0)

    def move(self, pages: int, aim: int) -> None:
        """Move the pool by this number of pages towards ``aim``, not past it; raises TargetError (ENOMEM) for too few,
        OSError."""
        now = self.pool.persistent()
        step = min(now + pages, aim) if now < aim else max(now - pages, aim)
        if step == now:
            return
        got = self._grow(now, step) if step > now else self._shrink(step)
        if got < min(step, aim):
            raise TargetError(f"{self.describe(got, aim)}: the kernel finds no memory for more", errno=errno.ENOMEM)

    def _shrink(self, pages: int) -> int:
        self.pool.resize(pages)
        return self.pool.persistent()

    def _grow(self, now: int, pages: int) -> int:
        """Ask for ``pages`` until the pool has them, or no way gives more; returns the number of pages. Raises
        OSError."""
        for way in WAYS:
            room, more = self._rooms.get(way), way in (FIRST, AGAIN) or way in self._rooms
            while more and now < pages:
                if room is not None:
                    room.make_room((pages - now) * self.size)
                before = now
                self.pool.resize(pages)
                now = self.pool.persistent()
                self.gained[way] += max(now - before, 0)
                more = now > before and way != FIRST
        return now

    def describe(self, pages: int, aim: int) -> str:
        """The current and the wanted number of pages, in words."""
        return f"node {self.nid} has {pages} huge pages of {format_size(self.size)}, not {aim}"


class _Reserver:
    """The chunk function. Positions count pages over all the nodes."""

    def __init__(self, shares: Sequence[_Share], *, take_back: bool) -> None:
        self._shares = shares
        self._take_back = take_back
        self._nodes: list[tuple[Node, _Share]] = []

    def work(self, nids: set[int] | None) -> list[Node]:
        """A range for each node (of ``nids``), whose length is the pool's distance from the goal."""
        position = 0
        for share in self._shares:
            if nids is None or share.nid in nids:
                node = Node(position, abs(share.wanted - share.before), share.nid)
                self._nodes.append((node, share))
                position += node.size
        return [node for node, _ in self._nodes]

    def _share_at(self, position: int) -> _Share:
        return next(share for node, share in self._nodes if node.start <= position < node.start + node.size)

    def step(self, start: int, end: int) -> None:
        """Move a node's pool by ``end - start`` pages towards the goal; raises TargetError."""
        share = self._share_at(start)
        with share.lock:
            before = share.pool.persistent()
            try:
                share.move(end - start, share.wanted)
            except (OSError, TargetError) as error:
                share.moved[start] = max(share.pool.persistent() - before, 0)
                if isinstance(error, TargetError):
                    raise
                raise TargetError.from_os(error, f"change the pool of node {share.nid}") from error

    def undo(self, start: int, end: int) -> None:
        """Move it back by the same number of pages."""
        share = self._share_at(start)
        with share.lock:
            share.move(share.moved.get(start, end - start), share.before)

    def finish(self, outcome: Outcome) -> str:
        """The result: a row for each node, and one for all.

        Raises Finding if all steps are done and a pool missed the goal: ENOMEM below it, EBUSY above.
        """
        missed = []
        if not outcome.remaining():
            now = [(share, share.pool.persistent()) for share in self._shares]
            missed = [(share, pages) for share, pages in now if pages != share.wanted]
        if missed and self._take_back:
            for node, share in self._nodes:
                with contextlib.suppress(TargetError, OSError):  # it gives what it can, and the result says how much
                    share.move(node.size, share.before)
        rows = []
        for share in self._shares:
            there = share.pool.counts()
            pages = there.total - there.surplus
            gained = share.gained.values()
            rows.append((share.nid, share.before, share.wanted, pages, there.free, there.surplus, *gained))
        totals = [sum(column) for column in list(zip(*rows, strict=True))[1:]]
        lines = [("node", "before", "wanted", "pages", "free", "surplus", *WAYS), *rows, ("all", *totals)]
        result = "".join(" ".join(map(str, line)) + "\n" for line in lines)
        if missed:
            share, pages = missed[0]
            raise Finding(
                f"{share.describe(pages, share.wanted)}: somebody else changed the pool",
                position=next((node.start for node, each in self._nodes if each is share), 0),
                result=result,
                errno=errno.ENOMEM if pages < share.wanted else errno.EBUSY,
            )
        return result
