from __future__ import annotations

import dataclasses
import errno
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ktaskfs.errors import Finding, InvalidValue, TargetError
from ktaskfs.host.hugepages import NodePool
from ktaskfs.host.reclaim import RoomMaker
from ktaskfs.host.topology import MachineMemory, read_memory, read_nodes
from ktaskfs.ktask import Job, TaskError
from ktaskfs.operations.pools import reserve
from ktaskfs.span import Node
from tests.support import hugepages
from tests.support.forked import run_forked

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ktaskfs.operations.base.plan import Plan
    from tests.support.runner import Runner

SIZE = 2 << 20
POOLS = sorted(Path("/sys/devices/system/node").glob("node[0-9]*/hugepages/hugepages-2048kB/nr_hugepages"))


@pytest.fixture
def spare() -> Iterator[hugepages.TestPool]:
    """The pool alone, for changes; it is restored at the end."""
    with hugepages.reserved(SIZE, 0) as pool:
        yield pool


def there() -> int:
    return sum(int(path.read_text()) for path in POOLS)


def result_of(plan: Plan) -> dict[str, dict[str, int]]:
    """Run a plan; its table, by node and column."""
    return parsed(plan.finish(Job(plan.nodes, plan.control).run()))


def parsed(text: str) -> dict[str, dict[str, int]]:
    header, *rows = (line.split() for line in text.splitlines())
    return {row[0]: dict(zip(header[1:], map(int, row[1:]), strict=True)) for row in rows}


def test_a_pool_grows_and_shrinks(runner: Runner, spare: hugepages.TestPool) -> None:
    before = there()
    plan = runner.prepare("reserve", pages=before + 50, size="2M", chunk=8)
    assert sum(node.size for node in plan.nodes) == 50
    result = result_of(plan)
    assert there() == before + 50 == spare.total
    assert (result["all"]["before"], result["all"]["wanted"], result["all"]["pages"]) == (before, before + 50, there())
    result = result_of(runner.prepare("reserve", pages=before + 3, chunk=8))
    assert there() == before + 3 == result["all"]["pages"]
    assert result_of(runner.prepare("reserve", pages=before + 3))["all"]["before"] == before + 3
    result_of(runner.prepare("reserve", pages=before))
    assert there() == before


def test_a_node_by_name(runner: Runner, spare: hugepages.TestPool) -> None:
    first = POOLS[0]
    before = int(first.read_text())
    result = result_of(runner.prepare("reserve", pages=before + 2, nodes="0"))
    assert list(result) == ["0", "all"]
    assert int(first.read_text()) == before + 2
    result_of(runner.prepare("reserve", pages=before, nodes="0"))


def test_pages_in_use_become_surplus(runner: Runner, spare: hugepages.TestPool) -> None:
    before = there()
    result_of(runner.prepare("reserve", pages=before + 4))
    fd = os.memfd_create("user", os.MFD_HUGETLB)
    os.posix_fallocate(fd, 0, 4 * SIZE)
    result = result_of(runner.prepare("reserve", pages=0))
    assert result["all"]["pages"] == 0
    assert result["all"]["surplus"] == there() >= 4
    os.close(fd)
    result_of(runner.prepare("reserve", pages=before))
    assert there() == before


@pytest.mark.parametrize("grows", [True, False])
def test_a_cancelled_task_keeps_or_takes_back(runner: Runner, spare: hugepages.TestPool, grows: bool) -> None:
    before = there() + (0 if grows else 40)
    result_of(runner.prepare("reserve", pages=before))
    wanted = before + (40 if grows else -40)
    for undo in (0, 1):
        plan = runner.prepare("reserve", pages=wanted, chunk=8, undo=undo)
        steps: list[int] = []

        jobs: list[Job] = []

        def step(start: int, end: int, plan: Plan = plan, steps: list[int] = steps, jobs: list[Job] = jobs) -> None:
            plan.control.thread_func(start, end)
            steps.append(there())
            jobs[0].cancel()

        job = Job(plan.nodes, dataclasses.replace(plan.control, thread_func=step, max_threads=1, max_chunk_size=8))
        jobs.append(job)
        outcome = job.run()
        plan.finish(outcome)
        assert outcome.cancelled
        assert steps == [before + (8 if grows else -8)]
        assert there() == (before if undo else steps[0])
        rest = [Node(node.start, node.start + node.size - node.start, node.nid) for node in outcome.remaining()]
        result_of(runner.prepare("reserve", rest, pages=wanted))
        assert there() == wanted
        result_of(runner.prepare("reserve", pages=before))
    result_of(runner.prepare("reserve", pages=before - (0 if grows else 40)))


@pytest.mark.parametrize("option", [{}, {"undo": 1}, {"undo": 0}, {"drop_caches": 1}], ids=str)
def test_a_failure_takes_back_the_part_of_a_step_that_failed_and_no_more(
    runner: Runner, spare: hugepages.TestPool, monkeypatch: pytest.MonkeyPatch, option: dict[str, int]
) -> None:
    """Of the second step's 8 pages the kernel gives 3, and maybe no room; then somebody else adds 5, which stay."""
    before = there()
    resize = NodePool.resize

    def scarce(pool: NodePool, pages: int) -> None:
        resize(pool, pages - 5 if pages > before + 8 else pages)

    plan = runner.prepare("reserve", pages=before + 16, nodes="0", chunk=8, **option)

    def step(start: int, end: int) -> None:
        try:
            plan.control.thread_func(start, end)
        except TargetError:
            POOLS[0].write_text(str(int(POOLS[0].read_text()) + 5))
            raise

    monkeypatch.setattr(NodePool, "resize", scarce)
    monkeypatch.setattr(RoomMaker, "make_room", lambda maker, size: os.write(-1, b""))
    failure = runner.failure(plan, threads=1, thread_func=step, max_chunk_size=8)
    monkeypatch.undo()
    assert failure.errno == (errno.EBADF if "drop_caches" in option else errno.ENOMEM)
    assert there() == before + 5 + (0 if option.get("undo", 1) else 8 + 3)
    result_of(runner.prepare("reserve", pages=before, nodes="0"))


def test_two_tasks_with_one_aim_meet_there(runner: Runner, spare: hugepages.TestPool) -> None:
    before = there()
    for plan in [runner.prepare("reserve", pages=before + 20) for _ in range(2)]:
        result_of(plan)
    assert there() == before + 20
    result_of(runner.prepare("reserve", pages=before))


@pytest.mark.parametrize(("grows", "number"), [(True, errno.ENOMEM), (False, errno.EBUSY)])
def test_a_pool_that_another_changes_meanwhile(
    runner: Runner, spare: hugepages.TestPool, grows: bool, number: int
) -> None:
    """The last step ends and no step is missing, but the pool is not as requested."""
    before = there() + 40
    result_of(runner.prepare("reserve", pages=before))
    wanted = before + (16 if grows else -16)
    plan = runner.prepare("reserve", pages=wanted, nodes="0", chunk=8)
    steps: list[int] = []

    def step(start: int, end: int) -> None:
        plan.control.thread_func(start, end)
        steps.append(end - start)
        POOLS[0].write_text(str(before))  # as somebody else with echo

    control = dataclasses.replace(plan.control, thread_func=step, max_threads=1, max_chunk_size=8)
    outcome = Job(plan.nodes, control).run()
    assert sum(steps) == 16
    with pytest.raises(Finding) as caught:
        plan.finish(outcome)
    assert caught.value.errno == number
    assert f"node 0 has {before} huge pages of 2M, not {wanted}" in caught.value.message
    assert parsed(caught.value.result)["0"]["pages"] == before
    result_of(runner.prepare("reserve", pages=before - 40))
    assert there() == before - 40


@pytest.mark.parametrize("kept", ["", "undo=0", "the kernel refuses"])
def test_pages_that_another_takes_off_meanwhile_fail_the_task_and_the_rest_goes_back(
    runner: Runner, spare: hugepages.TestPool, monkeypatch: pytest.MonkeyPatch, kept: str
) -> None:
    before = there()
    plan = runner.prepare("reserve", pages=before + 16, nodes="0", undo=0 if kept == "undo=0" else 1)
    outcome = Job(plan.nodes, plan.control).run()
    POOLS[0].write_text(str(int(POOLS[0].read_text()) - 5))

    def refuse(pool: NodePool, pages: int) -> None:
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    monkeypatch.setattr(NodePool, "resize", refuse if kept == "the kernel refuses" else NodePool.resize)
    with pytest.raises(Finding) as caught:
        plan.finish(outcome)
    monkeypatch.undo()
    left = before + 11 if kept else before
    assert (caught.value.errno, there(), parsed(caught.value.result)["0"]["pages"]) == (errno.ENOMEM, left, left)
    result_of(runner.prepare("reserve", pages=before, nodes="0"))


def test_more_than_there_is_memory_for(runner: Runner, spare: hugepages.TestPool) -> None:
    """Before a page is taken; ``force=1`` would try."""
    before, memory = there(), read_memory(runner.kernel)
    pages = before + memory.available // SIZE
    error = runner.refused("reserve", pages=pages)
    assert (type(error), error.errno) == (TargetError, errno.ENOMEM)
    assert re.fullmatch(
        r"the pool needs [\d.]+GiB more; [\d.]+GiB of memory is available, and "
        r"the machine keeps [\d.]+[GM]iB: force=1 tries anyway",
        error.message,
    )
    assert runner.refused("reserve", pages=pages, nodes="0").errno == errno.ENOMEM
    assert there() == before
    runner.prepare("reserve", pages=pages, force=1).abort()
    assert there() == before


@pytest.mark.parametrize(("total", "headroom"), [(4 << 30, 512 << 20), (100 << 30, 5 << 30)])
def test_what_the_machine_keeps(
    runner: Runner, spare: hugepages.TestPool, monkeypatch: pytest.MonkeyPatch, total: int, headroom: int
) -> None:
    before = there()
    monkeypatch.setattr(reserve, "read_memory", lambda kernel: MachineMemory(total, headroom + 10 * SIZE))
    runner.prepare("reserve", pages=before + 10).abort()
    assert "needs 22.0MiB more" in runner.refused("reserve", pages=before + 11).message
    monkeypatch.setattr(reserve, "read_memory", lambda kernel: MachineMemory(total, 0))
    runner.prepare("reserve", pages=before).abort()
    runner.prepare("reserve", pages=0).abort()


def test_more_than_a_node_has(runner: Runner, spare: hugepages.TestPool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only with ``nodes``."""
    before = int(POOLS[0].read_text())
    nodes = [node._replace(free=6 * SIZE, reclaimable=4 * SIZE) for node in read_nodes(runner.kernel)]
    monkeypatch.setattr(reserve, "read_nodes", lambda kernel: nodes)
    runner.prepare("reserve", pages=before + 10, nodes="0").abort()
    error = runner.refused("reserve", pages=before + 11, nodes="0")
    assert error.errno == errno.ENOMEM
    assert "node 0 needs 22.0MiB more, but the node has 20.0MiB free or reclaimable" in error.message
    runner.prepare("reserve", pages=before + 11, nodes="0", force=1).abort()
    runner.prepare("reserve", pages=there() + 11).abort()


def test_surplus_pages_are_there_already(
    runner: Runner, spare: hugepages.TestPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = there()
    result_of(runner.prepare("reserve", pages=before + 4))
    fd = os.memfd_create("user", os.MFD_HUGETLB)
    os.posix_fallocate(fd, 0, 4 * SIZE)
    result_of(runner.prepare("reserve", pages=0))
    monkeypatch.setattr(reserve, "read_memory", lambda kernel: MachineMemory(4 << 30, 0))
    assert result_of(runner.prepare("reserve", pages=4))["all"]["pages"] == 4
    monkeypatch.undo()
    os.close(fd)
    result_of(runner.prepare("reserve", pages=before))
    assert there() == before


def test_only_root_may(runner: Runner, spare: hugepages.TestPool) -> None:
    before = there()

    def attempt() -> list[object]:
        os.setgroups([])
        os.setresgid(65534, 65534, 65534)
        os.setresuid(65534, 65534, 65534)
        try:
            runner.prepare("reserve", pages=before + 1)
        except TargetError as error:
            return [error.errno, error.message]
        return []

    number, message = run_forked(attempt)
    assert number == errno.EACCES
    assert "only root may change a pool" in message
    assert there() == before


def test_what_is_not_there(runner: Runner) -> None:
    for texts, words in (
        ({"pages": "1", "size": "3M"}, "huge pages of 3M"),
        ({"pages": "1", "size": "4K"}, "huge pages of 4K"),
        ({}, "pages"),
    ):
        error = runner.refused("reserve", **texts)
        assert (type(error), words in error.message) == (InvalidValue, True), error.message


@pytest.mark.parametrize(
    ("options", "made", "gained"),
    [
        ({}, [], (8, 3, 0, 0)),
        ({"reclaim": 1}, ["reclaim", "reclaim"], (8, 3, 4, 0)),
        ({"drop_caches": 1}, ["drop_caches", "drop_caches"], (8, 3, 0, 4)),
        ({"reclaim": 1, "drop_caches": 1}, ["reclaim", "reclaim", "drop_caches"], (8, 3, 4, 1)),
    ],
)
def test_room_is_made_only_for_what_is_still_missing(
    runner: Runner,
    spare: hugepages.TestPool,
    monkeypatch: pytest.MonkeyPatch,
    options: dict[str, int],
    made: list[str],
    gained: tuple[int, ...],
) -> None:
    """The kernel gives 8 pages, then 2 and 1, and after room was made 4, and then 1 after more was."""
    before, resize, calls = there(), NodePool.resize, list[tuple[str, int]]()
    gifts = {0: [8, 2, 1, 0], 1: [4], 2: [0], 3: [1, 0]}

    def scarce(pool: NodePool, pages: int) -> None:
        now = pool.persistent()
        gift = gifts[len(calls)].pop(0) if pages > now else pages - now
        resize(pool, min(now + gift, pages))

    def make_room(room: RoomMaker, size: int) -> None:
        name = os.readlink(f"/proc/self/fd/{room._fd}").rpartition("/")[2]
        calls.append((name, size))

    monkeypatch.setattr(NodePool, "resize", scarce)
    monkeypatch.setattr(RoomMaker, "make_room", make_room)
    plan = runner.prepare("reserve", pages=before + 16, nodes="0", undo=0, **options)
    if sum(gained) == 16:
        result = result_of(plan)
    else:
        with pytest.raises(TaskError) as caught:
            Job(plan.nodes, plan.control).run()
        assert isinstance(caught.value.error, TargetError)
        assert caught.value.error.errno == errno.ENOMEM
        result = parsed(plan.finish(caught.value.outcome))
    monkeypatch.undo()
    assert [name for name, _ in calls] == made
    assert [size for _, size in calls] == [size * SIZE for size in (5, 1, 1)][: len(calls)]
    assert tuple(result["all"][way] for way in reserve.WAYS) == gained
    assert there() == before + sum(gained)
    result_of(runner.prepare("reserve", pages=before, nodes="0"))


def test_a_kernel_that_reclaims_on_no_node(
    runner: Runner, spare: hugepages.TestPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = there()
    monkeypatch.setattr(reserve, "open_reclaim", lambda node: None)
    result = result_of(runner.prepare("reserve", pages=before + 2, reclaim=1))
    assert (result["all"]["first"], result["all"]["reclaim"]) == (2, 0)
    result_of(runner.prepare("reserve", pages=before))
