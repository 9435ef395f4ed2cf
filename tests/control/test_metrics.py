"""``metrics`` as the library's own parser reads it, and the counters."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing
from prometheus_client import parser as prometheus
from prometheus_client.openmetrics import parser as openmetrics

from ktaskfs.control.durations import Durations
from ktaskfs.control.exposition import render_openmetrics, render_prometheus
from ktaskfs.control.metrics import MAX_AGE, UNITS_PER_SECOND, Exposition, Metrics
from ktaskfs.control.transitions import Transitions
from ktaskfs.host.hugepages import Pool
from ktaskfs.host.kernel import Kernel
from ktaskfs.operations.base.registry import find_operations
from ktaskfs.progress import NodeProgress, Phase, ThreadProgress, ThreadState
from ktaskfs.tasks.table import TaskTable
from ktaskfs.tasks.task import EMPTY, ENDED, Origin, State, Task
from ktaskfs.tasks.tunables import Settings
from ktaskfs.units import Nid
from tests.support.tasks import change_history

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from ktaskfs.progress import Snapshot


def samples(
    text: str, form: Exposition = Exposition.PROMETHEUS
) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """Every sample by name and labels; ValueError where the text is not of that form."""
    parser = openmetrics if form is Exposition.OPENMETRICS else prometheus
    families: Any = parser.text_string_to_metric_families(text)
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in families
        for sample in family.samples
    }


def worked(units: int, *, undone: bool = False) -> Snapshot:
    """The page of a worker whose two threads have done ``units`` together."""
    threads = tuple(ThreadProgress(n, 100 + n, 0, ThreadState.ENDED, 1, units // 2, 5, 0, 0, 0) for n in range(2))
    node = NodeProgress(0, 1000, 0, 1000)
    return replace(EMPTY, phase=Phase.DONE, total=1000, nodes=(node,), threads=threads, undone=undone)


class House:
    def __init__(self, kernel: Kernel) -> None:
        self.table = TaskTable(Settings({}))
        self.metrics = Metrics(find_operations(), kernel, lambda: 3)

    def follow(self) -> None:
        Transitions(self.table).observers.append(self.metrics.count)

    def add(self, number: int, state: State = State.NEW) -> Task:
        task = Task(Origin.now(number, f"t{number}", 1000, 1000))
        task.define(find_operations()["clear"], {})
        task.state = state
        self.table.add(task)
        return task


@pytest.fixture
def house() -> Iterator[House]:
    with contextlib.closing(Kernel.open()) as kernel:
        yield House(kernel)


def some(counts: Mapping[tuple[str, ...], int]) -> dict[tuple[str, ...], int]:
    """The counts without those that are 0, as nearly all are."""
    return {key: count for key, count in counts.items() if count}


@pytest.mark.parametrize("form", Exposition)
async def test_both_texts_are_what_they_say_and_say_the_same(
    house: House, form: Exposition, mock_clock: trio.testing.MockClock
) -> None:
    """The clock stands, so the second text is of the same facts."""
    house.follow()
    house.add(1)
    found = samples((await house.metrics.text(form)).decode(), form)
    assert found["ktaskfs_tasks", (("operation", "clear"), ("state", "new"))] == 1
    assert found["ktaskfs_open_handles", ()] == 3
    assert found["ktaskfs_process_resident_memory_bytes", ()] > 1 << 20
    assert found["ktaskfs_process_open_fds", ()] > 2
    assert 0 <= found["ktaskfs_event_loop_lag_seconds", ()] < 60
    assert {labels[0][0] for name, labels in found if name == "ktaskfs_build_info"} == {"version"}
    assert all(name.startswith("ktaskfs_") for name, _ in found), "no name is another exporter's"
    other = next(each for each in Exposition if each is not form)
    same = samples((await house.metrics.text(other)).decode(), other)
    process = "ktaskfs_process_"  # read anew for each text
    assert {key: same[key] for key in same if not key[0].startswith(process)} == {
        key: found[key] for key in found if not key[0].startswith(process)
    }
    assert set(same) == set(found)


async def test_every_series_is_there_before_anything_has_happened(house: House) -> None:
    """Where one appears with its first event, an alert on its increase does not see that."""
    house.follow()
    before = samples((await house.metrics.text(Exposition.PROMETHEUS)).decode())
    for number, end in enumerate(sorted(ENDED), 1):
        task = house.add(number)
        house.table.move(task, State.STARTING)
        house.table.move(task, State.RUNNING)
        change_history(task, final=worked(100))
        house.table.move(task, end)
    refused = house.add(9)
    house.table.move(refused, State.STARTING)
    house.table.drop(refused)
    house.table.add(Task(Origin.now(10, "empty", 1000, 1000)))
    facts = await house.metrics.facts()
    after = samples(render_prometheus(facts).decode())
    assert set(after) == set(before)
    outcomes = [after["ktaskfs_tasks_ended_total", (("operation", "clear"), ("outcome", end))] for end in ENDED]
    assert outcomes == [1] * len(ENDED)
    assert before["ktaskfs_tasks_ended_total", (("operation", "copy"), ("outcome", "failed"))] == 0
    assert after["ktaskfs_tasks", (("operation", "none"), ("state", "new"))] == 1
    for operation in find_operations():
        assert ("ktaskfs_tasks_refused_total", (("operation", operation),)) in before


async def test_ends_and_units_are_counted_once(house: House) -> None:
    house.follow()
    clear = ("clear",)
    for number, end in enumerate((State.DONE, State.DONE, State.CANCELLED), 1):
        task = house.add(number)
        house.table.move(task, State.STARTING)
        house.table.move(task, State.RUNNING)
        house.table.move(task, State.PAUSED)
        house.table.move(task, State.RUNNING)
        change_history(task, final=worked(100 * number))
        assert (await house.metrics.facts()).units["clear", "bytes"] == sum(100 * n for n in range(1, number + 1))
        house.table.move(task, end)
        house.table.drop(task)
    facts = await house.metrics.facts()
    assert some(facts.started) == {clear: 3}
    assert some(facts.ended) == {("clear", "done"): 2, ("clear", "cancelled"): 1}
    assert some(facts.units) == {("clear", "bytes"): 600}
    assert some(facts.tasks) == {}
    assert sum(facts.durations["clear"].counts) == 2, "only done tasks"
    assert facts.durations["copy"] == Durations()


async def test_a_start_that_comes_to_nothing_is_neither_a_start_nor_an_end(house: House) -> None:
    house.follow()
    resumed = house.add(1)
    house.table.move(resumed, State.STARTING)
    house.table.move(resumed, State.RUNNING)
    change_history(resumed, final=worked(300))
    house.table.move(resumed, State.INTERRUPTED)
    for _ in range(3):
        before = resumed.history
        change_history(resumed, final=None)
        house.table.move(resumed, State.STARTING)
        resumed.history = before
        house.table.move(resumed, State.INTERRUPTED)
    refused = house.add(2)
    house.table.move(refused, State.STARTING)
    house.table.drop(refused)
    facts = await house.metrics.facts()
    assert (facts.started["clear",], facts.refused["clear",]) == (1, 4)
    assert some(facts.ended) == {("clear", "interrupted"): 1}
    assert some(facts.units) == {("clear", "bytes"): 300}


async def test_a_queued_task_that_cannot_start_is_a_refused_start(house: House) -> None:
    """The root directory of its caller may be lost."""
    house.follow()
    for number, end in enumerate((State.FAILED, State.INTERRUPTED, State.CANCELLED), 1):
        house.table.move(house.add(number, State.QUEUED), end)
    facts = await house.metrics.facts()
    assert some(facts.refused) == {("clear",): 2}, "not the one that somebody cancelled"
    assert (some(facts.started), some(facts.ended)) == ({}, {})


async def test_a_start_that_somebody_cancels_is_not_a_refused_one(house: House) -> None:
    """The journal has it as information, so no alert may tell people to look there for a warning."""
    house.follow()
    task = house.add(1)
    house.table.move(task, State.STARTING)
    task.start_cancelled = True
    house.table.move(task, State.CANCELLED)
    facts = await house.metrics.facts()
    assert (some(facts.refused), some(facts.started), some(facts.ended)) == ({}, {}, {})


async def test_work_that_is_taken_back_was_work_all_the_same(house: House) -> None:
    house.follow()
    task = house.add(1)
    house.table.move(task, State.RUNNING)
    change_history(task, final=worked(500, undone=True))
    assert (await house.metrics.facts()).units["clear", "bytes"] == 500


async def test_what_an_earlier_daemon_saw_is_not_counted_again(house: House) -> None:
    house.follow()
    house.add(1, State.DONE)
    adopted = house.add(2, State.RUNNING)
    house.table.move(adopted, State.PAUSED)
    facts = await house.metrics.facts()
    assert (some(facts.started), some(facts.ended), some(facts.units)) == ({}, {}, {})
    assert some(facts.tasks) == {("clear", "done"): 1, ("clear", "paused"): 1}
    house.table.move(adopted, State.DONE)
    assert set((await house.metrics.facts()).durations.values()) == {Durations()}, "its beginning is unknown"


async def test_the_histogram_counts_each_duration_at_its_bound_and_at_all_above(house: House) -> None:
    durations = Durations()
    for seconds in (0.05, 1.0, 1.5, 299.0, 1e6):
        durations = durations.plus(seconds)
    facts = (await house.metrics.facts())._replace(durations={"clear": durations})
    for form, text in (
        (Exposition.PROMETHEUS, render_prometheus(facts)),
        (Exposition.OPENMETRICS, render_openmetrics(facts)),
    ):
        found = samples(text.decode(), form)
        assert {dict(labels)["le"]: count for (name, labels), count in found.items() if name.endswith("_bucket")} == {
            "0.1": 1,
            "1.0": 2,
            "10.0": 3,
            "60.0": 3,
            "300.0": 4,
            "1800.0": 4,
            "+Inf": 5,
        }
        assert found["ktaskfs_task_duration_seconds_count", (("operation", "clear"),)] == 5
        assert found["ktaskfs_task_duration_seconds_sum", (("operation", "clear"),)] == pytest.approx(1000301.55)


async def test_pools_of_the_machine_and_of_nodes_are_metrics_of_their_own(house: House) -> None:
    facts = await house.metrics.facts()
    pools = (
        Pool(2 << 20, None, 8, 6, 4, 1, 2),
        Pool(2 << 20, Nid(0), 3, 3, 0, 0, 0),
        Pool(2 << 20, Nid(1), 5, 3, 0, 1, 0),
    )
    found = samples(render_prometheus(facts._replace(pools=pools)).decode())
    shown = {key: value for key, value in found.items() if "hugepages" in key[0]}
    machine, nodes = (("page_size", "2097152"),), [(("node", node), ("page_size", "2097152")) for node in "01"]
    assert shown == {
        ("ktaskfs_hugepages", machine): 8,
        ("ktaskfs_hugepages_free", machine): 6,
        ("ktaskfs_hugepages_reserved", machine): 4,
        ("ktaskfs_hugepages_surplus", machine): 1,
        ("ktaskfs_node_hugepages", nodes[0]): 3,
        ("ktaskfs_node_hugepages", nodes[1]): 5,
        ("ktaskfs_node_hugepages_free", nodes[0]): 3,
        ("ktaskfs_node_hugepages_free", nodes[1]): 3,
        ("ktaskfs_node_hugepages_surplus", nodes[0]): 0,
        ("ktaskfs_node_hugepages_surplus", nodes[1]): 1,
    }


async def test_a_crowd_of_readers_shares_one_text(house: House) -> None:
    texts: list[bytes] = []

    async def read() -> None:
        texts.append(await house.metrics.text(Exposition.PROMETHEUS))

    async with trio.open_nursery() as nursery:
        for _ in range(800):
            nursery.start_soon(read)
    assert len({id(text) for text in texts}) <= 2  # the second, if that took longer than a second
    await trio.sleep(MAX_AGE)
    assert await house.metrics.text(Exposition.PROMETHEUS) is not texts[-1]


async def test_forged_numbers_add_no_more_than_the_total_and_never_fall(house: House) -> None:
    house.follow()
    task = house.add(1)
    house.table.move(task, State.RUNNING)
    for units, counted in ((400, 400), (1 << 62, 1000), (0, 1000), (-1 << 62, 1000)):
        change_history(task, final=worked(units))
        assert (await house.metrics.facts()).units["clear", "bytes"] == counted
    change_history(task, final=replace(worked(1 << 62), total=1 << 62))
    assert (await house.metrics.facts()).units["clear", "bytes"] <= UNITS_PER_SECOND * 60
    house.table.move(task, State.DONE)
    assert (await house.metrics.facts()).units["clear", "bytes"] <= UNITS_PER_SECOND * 60
