"""The page when its worker dies at any store: no unit is ever lost, and none is believed that was not done."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from hypothesis import example, given, settings
from hypothesis import strategies as st

from ktaskfs.progress import (
    Phase,
    WorkerPage,
    read_snapshot,
)
from tests.support.pages import ALL, NODES, SHAPE, new_page, units

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ktaskfs.ktask import Monitor


class Crash(Exception):
    """The worker died here."""


class Words:
    """The words of a page, until the store number ``crash``: that one is not made, nor any after it."""

    def __init__(self, words: memoryview, crash: int | None) -> None:
        self.words = words
        self.left = crash
        self.stores = 0

    def __getitem__(self, index: Any) -> Any:
        return self.words[index]

    def __setitem__(self, index: int | slice, value: Any) -> None:
        single = range(len(self.words))[index] if isinstance(index, slice) else [index]
        values = list(value) if isinstance(index, slice) else [value]
        for at, word in zip(single, values, strict=True):
            if self.left == self.stores:
                raise Crash
            self.stores += 1
            self.words[at] = word


@dataclass(frozen=True)
class Step:
    """One thing that happens to a task: thread ``slot`` finishes its chunk if it has one, and takes ``size`` units."""

    slot: int
    node: int
    size: int
    what: str


STEPS = st.lists(
    st.builds(
        Step,
        st.integers(0, SHAPE.slots - 1),
        st.integers(0, 1),
        st.integers(1, 4),
        st.sampled_from(["take", "take", "take", "wait", "fail", "leave"]),
    ),
    max_size=12,
)


class Model:
    """Plays the scheduler to a page, keeping the truth beside it."""

    def __init__(self, monitor: Monitor) -> None:
        self.monitor = monitor
        self.handed = [0, 0]
        self.chunks: dict[int, tuple[int, int, int]] = {}
        self.failed: set[int] = set()
        self.finished: set[int] = set()

    def play(self, steps: Sequence[Step]) -> None:
        for step in steps:
            if step.slot not in self.failed:
                self.play_step(step)

    def play_step(self, step: Step) -> None:
        chunk = self.chunks.pop(step.slot, None)
        if chunk is not None and step.what == "fail":
            self.failed.add(step.slot)
            self.monitor.chunk_failed(step.slot, *chunk)
            self.monitor.thread_ended(step.slot)
            return
        if chunk is not None:
            node, start, end = chunk
            # The chunk function has returned: from here on the units are done, even if nobody knows it yet.
            self.finished |= set(range(NODES[node].start + start, NODES[node].start + end))
            self.monitor.chunk_done(step.slot, node, start, end, 1000)
        if step.what == "wait":
            self.monitor.thread_waits(step.slot, "paused")
        elif step.what == "leave":
            self.monitor.thread_ended(step.slot)
            self.monitor.thread_started(step.slot, 1000 + step.slot, -1)
        else:
            self.take(step)

    def take(self, step: Step) -> None:
        start = self.handed[step.node]
        end = min(start + step.size, NODES[step.node].end - NODES[step.node].start)
        if start < end:
            self.chunks[step.slot] = step.node, start, end
            self.monitor.chunk_assigned(step.slot, step.node, start, end)
            self.handed[step.node] = end
            self.monitor.node_advanced(step.node, end)


def run_until(steps: Sequence[Step], crash: int | None, fd: int) -> tuple[Model, int]:
    """A worker's whole life on the page ``fd`` up to the store number ``crash``; the stores that were made."""
    page = WorkerPage(fd)
    words = Words(page._words, crash)
    page._words = cast("memoryview", words)
    model = Model(page)
    try:
        page.begin(NODES, 17)
        for slot in range(SHAPE.slots):
            page.thread_started(slot, 1000 + slot, slot % 2)
        model.play(steps)
        page.end(Phase.CANCELLED, number=4, position=7, message="m", result="")
    except Crash:
        pass
    return model, words.stores


@settings(max_examples=25, deadline=None)
@given(STEPS)
@example([Step(0, 0, 4, "take"), Step(1, 0, 4, "take"), Step(0, 1, 4, "take"), Step(1, 0, 4, "fail")])
def test_whenever_the_worker_dies_no_unit_is_lost(steps: list[Step]) -> None:
    whole = new_page()
    _, stores = run_until(steps, None, whole)
    os.close(whole)
    for crash in range(stores + 1):
        fd = new_page()
        model, _ = run_until(steps, crash, fd)
        snapshot = read_snapshot(fd, SHAPE)
        os.close(fd)
        left = set(units(snapshot.remaining()))
        if snapshot.nodes:
            assert left >= ALL - model.finished
            assert left <= ALL
        assert snapshot.done <= len(model.finished)
        if snapshot.total:
            assert snapshot.done + len(left) == snapshot.total == 17
        assert sum(each.units for each in snapshot.threads) <= len(model.finished)


@settings(deadline=None)
@given(STEPS)
def test_between_two_calls_the_page_is_exact(steps: list[Step]) -> None:
    fd = new_page()
    page = WorkerPage(fd)
    page.begin(NODES, 17)
    for slot in range(SHAPE.slots):
        page.thread_started(slot, 1000 + slot, 0)
    model = Model(page)
    for step in steps:
        model.play([step])
        snapshot = read_snapshot(fd, SHAPE)
        assert set(units(snapshot.remaining())) == ALL - model.finished
        assert snapshot.done == len(model.finished) == sum(each.units for each in snapshot.threads)
    os.close(fd)
