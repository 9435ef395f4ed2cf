"""Measures how many threads help while the task runs, separately for each NUMA node."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from ktaskfs.ktask.search import Measure, Search

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from ktaskfs.ktask.node_work import NodeWork
    from ktaskfs.ktask.task_thread import TaskThread

_PAUSE_NS: Final = 5_000_000
"""Evaluations are at least 5 ms apart, so that their cost is negligible."""
_LEAST_NS: Final = 20_000_000
"""Measurements below 20 ms decide nothing, because the machine's scheduler has its own time slices."""
_STALLED: Final = 3
"""A thread stalls if its chunk takes this many times longer than others."""


class NodeGroup:
    """The work of one NUMA node, and the search for its threads."""

    __slots__ = ("began_ns", "indexes", "live", "measure", "nid", "round", "search", "told")

    def __init__(self, nid: int, indexes: list[int]) -> None:
        self.nid = nid
        self.indexes = indexes
        """The nodes of the work that name this NUMA node, from the last to the first; those used up are removed at the
        end."""
        self.search = Search(1, 1)
        self.round = object()
        """A new measure after each change of its number of threads."""
        self.measure = Measure(1)
        self.began_ns = 0
        """The time at which the measure began."""
        self.live = 0
        """Threads that worked here at the last count."""
        self.told = 0, ""


class _Seen:
    """The work of a thread at the last evaluation."""

    __slots__ = ("at_ns", "busy_ns", "chunks", "round", "units", "waits")

    def __init__(self, thread: TaskThread, round_: object, at_ns: int, *, waits: bool) -> None:
        self.at_ns = at_ns
        self.round = round_
        self.waits = waits
        """Its current chunk began with another number of threads."""
        self.chunks = thread.chunks
        self.units = thread.units
        self.busy_ns = thread.busy_ns


class Finder:
    """Has no lock of its own: the scheduler's guards all of it.

    It evaluates after some chunks were handed out. An evaluation adds to the measure of each group the work of its
    threads since the last change of their number, without chunks in progress at that change.
    """

    def __init__(self, nodes: Sequence[NodeWork]) -> None:
        by_nid: dict[int, list[int]] = {}
        for index, node_work in enumerate(nodes):
            by_nid.setdefault(node_work.node.nid, []).append(index)
        self._nodes = nodes
        self.groups = [NodeGroup(nid, indexes[::-1]) for nid, indexes in by_nid.items()]
        self._group_of = {index: group for group in self.groups for index in group.indexes}
        self._most = 1
        self._seen: dict[TaskThread, _Seen] = {}
        self._at_ns = 0
        self._spacing = 1
        self.look_at = 0
        """An evaluation is due when fewer units are left to hand out."""

    def begin(self, start: Callable[[int], int], most: int, size: int, now_ns: int) -> None:
        """Begin to hand out ``size`` units with at most ``most`` threads, and at least one for each group.

        ``start`` returns the threads to begin with for the units that a group has left.
        """
        self._at_ns = now_ns
        for group in self.groups:
            group.search = Search(min(start(self._left(group)), most), most)
        self.look_at = size
        self.limit(most)

    def limit(self, most: int) -> None:
        """All groups together may have ``most`` threads from now on, and each at least one."""
        self._most = most
        groups = self._open()
        while (above := sum(group.search.claim for group in groups) - most) > 0:
            largest = max(groups, key=lambda group: group.search.claim)
            claim = largest.search.claim
            if claim == 1:
                break
            largest.search.limit(max(1, claim - -(-above // len(groups))))
        for group in groups:
            self._share(group)
            self._begin_round(group)

    def _share(self, group: NodeGroup) -> None:
        """Give the group the threads that the others leave."""
        others = sum(other.search.claim for other in self._open() if other is not group)
        group.search.limit(max(group.search.claim, self._most - others))

    def _begin_round(self, group: NodeGroup) -> None:
        group.round = object()
        self._begin_measure(group)

    def _begin_measure(self, group: NodeGroup) -> None:
        group.measure = Measure(group.search.target)
        group.began_ns = self._at_ns

    def refused(self, threads: Iterable[TaskThread]) -> None:
        """No more threads than these are available."""
        self.count(threads)
        self.limit(max(1, sum(group.live for group in self.groups)))

    @property
    def total(self) -> int:
        """The threads to have now: fewer than the groups if no more can be had."""
        return min(sum(group.search.target for group in self._open()), self._most)

    def _open(self) -> list[NodeGroup]:
        """The groups that have work left."""
        return [group for group in self.groups if self._is_open(group)]

    def _is_open(self, group: NodeGroup) -> bool:
        # Asked at the end of each node, so it must not look at all of them.
        indexes = group.indexes
        while indexes and not self._nodes[indexes[-1]].left:
            indexes.pop()
        return bool(indexes)

    def _left(self, group: NodeGroup) -> int:
        return sum(self._nodes[index].left for index in group.indexes)

    def count(self, threads: Iterable[TaskThread]) -> None:
        """Count the live threads of each group."""
        for group in self.groups:
            group.live = 0
        for thread in threads:
            if thread.live:
                self._group_of[thread.index].live += 1

    def place(self, threads: Iterable[TaskThread]) -> int | None:
        """The index of a node with work whose group lacks a thread; None: none does."""
        self.count(threads)
        for group in self._open():
            if group.live < group.search.target:
                return group.indexes[-1]
        return None

    def too_many(self, thread: TaskThread, threads: Iterable[TaskThread]) -> bool:
        """The thread's group has more threads than it should."""
        group = self._group_of[thread.index]
        self.count(threads)
        return group.live > (group.search.target if self._is_open(group) else 0)

    def kept(self, threads: Iterable[TaskThread]) -> int:
        """The live threads, without those that are too many for their group."""
        self.count(threads)
        return sum(min(group.live, group.search.target) for group in self._open())

    def even(self, threads: Iterable[TaskThread]) -> bool:
        """No group has more threads than it should."""
        self.count(threads)
        return all(group.live <= (group.search.target if self._is_open(group) else 0) for group in self.groups)

    def join(self, thread: TaskThread) -> None:
        """The thread begins; its work counts from now on."""
        for ended in [each for each in self._seen if not each.live]:
            del self._seen[ended]
        self._seen[thread] = _Seen(thread, self._group_of[thread.index].round, self._at_ns, waits=False)

    def look(self, now_ns: int, threads: Sequence[TaskThread], chunk: int, left: int) -> bool:
        """Evaluate, before a chunk of ``left`` units is taken; True: the number of threads must change."""
        live = [thread for thread in threads if thread.live]
        early = now_ns - self._at_ns < _PAUSE_NS
        self._spacing = self._spacing * 2 if early else max((len(live) + 1) // 2, self._spacing // 2)
        self.look_at = left - self._spacing * chunk
        if early:
            return False
        self._at_ns = now_ns
        self.count(threads)
        for thread in live:
            if thread.tid:
                self._add(thread, self._group_of[thread.index])
        changed = False
        for group in self._open():
            search, target = group.search, group.search.target
            if group.live != target or not group.measure.chunks or now_ns - group.began_ns < _LEAST_NS:
                continue
            self._share(group)
            group.measure.stalled_ns = self._stalled(group, live)
            if search.decide(group.measure, self._left(group) // chunk):
                self._begin_measure(group)
                if search.target != target:
                    self._begin_round(group)
                    changed = True
        return changed

    def _stalled(self, group: NodeGroup, live: Iterable[TaskThread]) -> int:
        """Nanoseconds since the measure began that threads of the group have been at their chunk, if they stall."""
        measure, since = group.measure, self._at_ns - group.began_ns
        usual = _STALLED * measure.busy_ns // measure.chunks
        waited = (
            self._at_ns - self._seen[thread].at_ns
            for thread in live
            if thread in self._seen and self._group_of[thread.index] is group
        )
        return sum(min(each, since) for each in waited if each > usual)

    def news(self) -> Iterator[tuple[int, int, str]]:
        """NUMA node, threads and reason of each group whose report has changed."""
        for group in self._open():
            search = group.search
            why = "trying"
            if search.settled:
                why = "most" if search.kept >= search.most else "enough"
            if group.told != (search.kept, why):
                group.told = search.kept, why
                yield group.nid, search.kept, why

    def _add(self, thread: TaskThread, group: NodeGroup) -> None:
        """Add the thread's work since the last evaluation to the group's measure."""
        seen = self._seen.get(thread)
        if seen is None or seen.round is not group.round:
            self._seen[thread] = _Seen(thread, group.round, self._at_ns, waits=thread.at_chunk)
        elif thread.chunks > seen.chunks:
            if not seen.waits:
                group.measure.add(thread.chunks - seen.chunks, thread.units - seen.units, thread.busy_ns - seen.busy_ns)
            self._seen[thread] = _Seen(thread, group.round, self._at_ns, waits=False)
