"""Measures the inputs of the scaling model on this machine: costs for each chunk, page and thread, as CPU time.

The CPU time of one thread does not contain other work on the machine. But it does not show how two threads share a
memory: the published series show that, and the main job checks it.
"""

from __future__ import annotations

import dataclasses
import os
import time
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Final

from bench.harness import Series
from bench.mounts import directory, hugetlbfs
from bench.pool import reserved
from bench.thread_peers import TwoNodes, nothing
from ktaskfs import ktask
from ktaskfs.host import syscalls
from ktaskfs.host.kernel import Kernel
from ktaskfs.ktask.task_thread import FIRST_SLOT, TaskThread
from ktaskfs.operations.base.parameters import parse_parameters
from ktaskfs.operations.base.registry import find_operations
from ktaskfs.progress import Requests, Shape, WorkerPage, create_page

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from ktaskfs.operations.base.plan import Plan

PAGE: Final = 2 << 20
CLEAR_CHUNK: Final = 4096
"""Bytes of a chunk so small that zeroing is negligible beside the rest of the call."""
EMPTY: Final = "an empty chunk: the framework and the shared page"
LOCKED: Final = "of it, under the scheduler's lock"
FALLOCATE: Final = "a chunk of `fallocate`: one page that is there already"
CLEAR: Final = "a chunk of `clear`: 4 KiB"
UNMAP: Final = "the end of the mapping, for each page"
PUNCH: Final = "freeing a page (no zeroing, the same locks)"
START: Final = "starting a thread"
CORE_FALLOCATE: Final = "`fallocate`, 64 MiB, one thread"
CORE_CLEAR: Final = "`clear`, 64 MiB, one thread"


class _Bench:
    """A hugetlbfs, and plans of real operations on a file in it. The framework runs them without a daemon."""

    def __init__(self, where: Path, huge: Path, size: int) -> None:
        self._where = where
        self._kernel = Kernel.open()
        self._operations = find_operations()
        self.target = huge / "target"
        self.size = size

    def close(self) -> None:
        self._kernel.close()

    def plan(self, operation: str) -> Plan:
        """Returns the plan of the operation on the whole file, as a worker prepares it."""
        found = self._operations[operation]
        texts = {"path": str(self.target), "length": str(self.size)}
        meant, parameters = found.meant(parse_parameters(found.parameters, texts))
        return meant.plan(self._kernel, parameters, None)

    @contextmanager
    def page(self) -> Iterator[WorkerPage]:
        """A page like the one that daemon and worker share."""
        path = self._where / "page"
        fd = create_page(str(path), Shape(1, 1), Requests())
        try:
            yield WorkerPage(fd)
        finally:
            os.close(fd)
            path.unlink()

    def chunks(self, plan: Plan, chunk: int, number: int) -> float:
        """Returns the CPU seconds of each of ``number`` chunks of the plan's own function, on one thread."""
        with self.page() as page:
            control = dataclasses.replace(
                plan.control, min_chunk_size=chunk, max_chunk_size=chunk, align=chunk, max_threads=1, monitor=page
            )
            began = time.process_time()
            ktask.Job([ktask.Node(plan.nodes[0].start, chunk * number)], control).run()
            return (time.process_time() - began) / number


def _empty(bench: _Bench, number: int) -> float:
    with bench.page() as page:
        control = ktask.Control(nothing, min_chunk_size=1, max_chunk_size=1, monitor=page)
        began = time.process_time()
        ktask.Job([ktask.Node(0, number)], dataclasses.replace(control, max_threads=1)).run()
        return (time.process_time() - began) / number


def _unlocked(bench: _Bench, number: int) -> float:
    """The part of an empty chunk that ``Scheduler.work`` does without the scheduler's lock."""
    thread, now_ns, thread_func = TaskThread(FIRST_SLOT, 0, None), time.monotonic_ns, nothing
    with bench.page() as page:
        chunk_done = page.chunk_done
        began = time.process_time()
        for start in range(number):
            began_ns = now_ns()
            thread_func(start, start + 1)
            busy_ns = now_ns() - began_ns
            thread.busy_ns += busy_ns
            chunk_done(FIRST_SLOT, 0, start, start + 1, busy_ns)
        return (time.process_time() - began) / number


def start_seconds(threads: int) -> float:
    """Returns the seconds that the first thread needs to start a helper."""

    def run(count: int) -> float:
        control = ktask.Control(
            nothing,
            min_chunk_size=1,
            max_chunk_size=1,
            max_threads=count,
            threads="fixed",
            cpu_percent=100,
            machine=TwoNodes(count),
        )
        began = time.thread_time()
        ktask.Job([ktask.Node(0, count)], control).run()
        return time.thread_time() - began

    return max(run(threads) - run(1), 0.0) / (threads - 1)


def measure_costs(size: int, rounds: int, *, smoke: bool) -> tuple[dict[str, Series], dict[str, Series]]:
    """Returns costs by name, and the time of one thread for ``size`` bytes, in seconds. A round takes 1 s per GiB."""
    costs: dict[str, list[float]] = {}
    whole: dict[str, list[float]] = {}
    number = 200 if smoke else 20_000

    def note(into: dict[str, list[float]], name: str, value: float) -> None:
        into.setdefault(name, []).append(value)

    with ExitStack() as stack:
        where = stack.enter_context(directory())
        stack.enter_context(reserved(PAGE, size))
        bench = _Bench(where, stack.enter_context(hugetlbfs(where / "huge", PAGE)), size)
        stack.callback(bench.close)
        for turn in range(rounds + 1):  # the first touches the memory, and does not count
            kept = turn > 0
            first, end = _whole(bench, "fallocate")
            zeroed, _ = _whole(bench, "clear")
            small = _small(bench, "fallocate", PAGE, size // PAGE), _small(bench, "clear", CLEAR_CHUNK, number // 10)
            punched = _cpu(lambda: _punch(bench)) / (size // PAGE)
            if not kept:
                continue
            note(whole, CORE_FALLOCATE, first)
            note(whole, CORE_CLEAR, zeroed)
            empty = _empty(bench, number)
            note(costs, EMPTY, empty)
            note(costs, LOCKED, empty - _unlocked(bench, number))
            note(costs, FALLOCATE, small[0])
            note(costs, CLEAR, small[1])
            note(costs, UNMAP, end / (size // PAGE))
            note(costs, PUNCH, punched)
            note(costs, START, start_seconds(8 if smoke else 128))
        bench.target.unlink()
    return _series(costs), _series(whole)


def _series(found: dict[str, list[float]]) -> dict[str, Series]:
    return {name: Series(name, values) for name, values in found.items()}


def _whole(bench: _Bench, operation: str) -> tuple[float, float]:
    """Returns the CPU seconds of the operation with its largest chunk, and those of the unmapping at its end."""
    plan = bench.plan(operation)
    chunk = min(64 << 20, bench.size)
    worked = bench.chunks(plan, chunk, bench.size // chunk) * (bench.size // chunk)
    outcome = ktask.Job(plan.nodes, plan.control).outcome()
    return worked, _cpu(lambda: plan.finish(outcome))


def _small(bench: _Bench, operation: str, chunk: int, number: int) -> float:
    """Returns the CPU seconds of an almost empty chunk on existing pages."""
    plan = bench.plan(operation)
    try:
        return bench.chunks(plan, chunk, min(number, bench.size // chunk))
    finally:
        plan.finish(ktask.Job(plan.nodes, plan.control).outcome())


def _punch(bench: _Bench) -> None:
    fd = os.open(bench.target, os.O_RDWR)
    try:
        syscalls.punch_hole(fd, 0, bench.size)
    finally:
        os.close(fd)


def _cpu(action: Callable[[], object]) -> float:
    began = time.process_time()
    action()
    return time.process_time() - began
