"""The text of a task's status files."""

from __future__ import annotations

import os
import re
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import wait_all_tasks_blocked

from ktaskfs.control import figures, task_text
from ktaskfs.control.manual import manual
from ktaskfs.control.task_directory import task_files
from ktaskfs.control.wait import INTERVAL, WaitStream
from ktaskfs.operations.base.registry import find_operations
from ktaskfs.progress import NodeProgress, Phase, Shape, Snapshot, ThreadProgress, ThreadState, read_snapshot
from ktaskfs.tasks.history import History
from ktaskfs.tasks.task import EMPTY, Origin, State, Task
from ktaskfs.units import PAGES, table
from ktaskfs.vfs import Change, Portions
from tests.support.tasks import change_history, change_texts

if TYPE_CHECKING:
    from trio.testing import MockClock

OPERATIONS = find_operations()
FILES = task_files(OPERATIONS)
THREAD = ThreadProgress(0, 71, -1, ThreadState.RUNNING, 3, 30, 1500, 0, 30, 40)
HALF = Snapshot(
    phase=Phase.RUNNING,
    started_ns=10**9,
    ended_ns=3 * 10**9,
    total=100,
    errno=0,
    error_position=0,
    message="",
    result_size=0,
    undone=False,
    nodes=(NodeProgress(1000, 100, -1, 60),),
    threads=(THREAD, THREAD._replace(slot=1, tid=72, nid=1, state=ThreadState.PAUSED, start=60, end=60)),
)


def make(snapshot: Snapshot = HALF, state: State = State.RUNNING, **texts: str) -> Task:
    task = Task(Origin(1, "t", 7, 8, created_ns=10**18))
    task.history = History(OPERATIONS["clear"], {"path": "/a", **texts}, final=snapshot)
    task.state = state
    return task


def status(task: Task) -> str:
    return task_text.status(task, FILES.parameters[None if task.operation is None else task.operation.name].values())


@pytest.mark.parametrize(
    ("done", "total", "seconds", "line"),
    [
        (0, 100, 1, "[>...................]   0.0% (0/100) finish=unknown speed=0B/s"),
        (50, 100, 5, "[==========>.........]  50.0% (50/100) finish=5.0s speed=10B/s"),
        (99 << 30, 100 << 30, 99, f"[===================>]  99.0% ({99 << 30}/{100 << 30}) finish=1.0s speed=1.0GiB/s"),
        (100, 100, 100, "[====================] 100.0% (100/100) finish=0.0s speed=1B/s"),
        (0, 0, 1, "[>...................]   0.0% (0/0) finish=unknown speed=0B/s"),
    ],
)
def test_a_line_of_progress(done: int, total: int, seconds: int, line: str) -> None:
    nodes = (NodeProgress(0, total, -1, done),)
    snapshot = replace(HALF, total=total, nodes=nodes, threads=(), started_ns=10**9, ended_ns=(1 + seconds) * 10**9)
    assert task_text.progress_line(make(snapshot), snapshot) == line + "\n"


def test_nobody_knows_when_a_paused_task_is_done() -> None:
    assert "finish=unknown speed=25B/s" in task_text.progress_line(make(state=State.PAUSED), HALF)


def test_an_empty_task_that_is_done_is_done_wholly() -> None:
    assert task_text.percent(make(EMPTY, State.DONE), EMPTY) == 100


def test_earlier_runs_count() -> None:
    task = make()
    change_history(task, base=40)
    assert task_text.progress(task) == "90 / 140\n"


def test_units_that_are_not_bytes_are_named() -> None:
    assert task_text.format_speed(PAGES, 5120.4) == "5120pages/s"


def test_an_error_has_its_name_and_position() -> None:
    assert task_text.error(make()) == "0\n"
    failed = replace(HALF, errno=12, error_position=4096, message="no page left")
    assert task_text.error(make(failed)) == "ENOMEM at 4096: no page left\n"


def test_threads_are_a_table_and_a_dead_workers_have_ended() -> None:
    rows = [line.split() for line in task_text.threads(make()).splitlines()]
    assert rows == [
        ["tid", "node", "cpu", "state", "chunks", "done", "busy_us", "range"],
        ["71", "-", "-", "ended", "3", "30", "1500", "1030-1040"],
        ["72", "1", "-", "ended", "3", "30", "1500", "-"],
    ]


def test_status_is_keys_and_values_as_in_proc() -> None:
    lines = status(make(length="4K", undo="1")).splitlines()
    fields = dict(line.split(":\t", 1) for line in lines)
    assert all(re.fullmatch(r"[A-Z][a-z_]*:\t.*", line) for line in lines)
    assert (fields["Name"], fields["State"], fields["Path"], fields["Length"]) == ("t", "running", "/a", "4K")
    assert (fields["Uid"], fields["Worker"], fields["Undo"], fields["Max_threads"]) == ("7", "-", "1", "max")
    assert (fields["Done"], fields["Total"], fields["Percent"]) == ("50 bytes", "100 bytes", "50.0")
    assert (fields["Speed"], fields["Seconds"], fields["Finish"], fields["Error"]) == ("25B/s", "2.000", "2.0s", "0")


def test_no_key_of_the_status_has_two_meanings() -> None:
    """An empty task has the parameters of all operations."""
    keys = [line.partition(":\t")[0] for line in status(Task(Origin.now(1, "t", 0, 0))).splitlines()]
    assert sorted(set(keys)) == sorted(keys)


def test_the_status_of_an_empty_task_shows_every_parameter_that_it_has_a_file_for() -> None:
    shown = [line.partition(":\t")[0].lower() for line in status(Task(Origin.now(1, "t", 0, 0))).splitlines()]
    files = [name for operation in OPERATIONS.values() for name in FILES.parameters[operation.name]]
    assert shown[3 : shown.index("uid")] == list(dict.fromkeys(files))


def test_no_path_can_forge_a_line_of_the_status() -> None:
    task = make()
    change_texts(task, path="/a\nState:\tdone\\")
    lines = status(task).splitlines()
    assert [line for line in lines if line.startswith("State:")] == ["State:\trunning"]
    assert "Path:\t/a\\012State:\\011done\\134" in lines


def test_no_path_is_a_command_to_the_terminal() -> None:
    task = make()
    change_texts(task, path="/ä\x1b[1m\u009b31m\u202e\udcff")
    assert "Path:\t/ä\\033[1m\\302\\23331m\\342\\200\\256\\377\n" in status(task)


def test_stat_is_flat_keyed_and_its_keys_stay() -> None:
    lines = [line.split(" ") for line in figures.stat(make()).splitlines()]
    assert all(len(line) == 2 for line in lines)
    assert [key for key, _ in lines][:19] == (
        ["state", "operation", "uid", "gid", "pid", "threads", "threads_found", "max_threads", "nice", "rate_max"]
        + ["chunks", "done"]
        + ["total", "units", "busy_usec", "created_usec", "elapsed_usec", "errno", "error_position"]
    )
    values = dict(lines)
    assert (values["done"], values["total"], values["busy_usec"], values["elapsed_usec"]) == (
        ("50", "100", "3000", "2000000")
    )


def test_every_file_of_an_empty_task_can_be_read() -> None:
    task = Task(Origin.now(1, "t", 0, 0))
    for render in (status, figures.stat, task_text.progress, task_text.threads, task_text.error):
        assert render(task)
    assert task_text.progress(task) == "0 / 0\n"


@settings(deadline=None)
@given(st.binary(min_size=584, max_size=584))
def test_a_scribbled_page_is_shown_without_harm(chosen: bytes) -> None:
    """Half of the words are extreme, half are from 0 to 50. A byte selects each: Hypothesis makes bytes fastest."""
    extreme = (0, 1, 3, 2**31, 2**63, 2**64 - 1)
    words = (extreme[byte % 6] if byte >= 128 else byte % 51 for byte in chosen)
    fd = os.memfd_create("page")
    try:
        os.write(fd, b"".join(word.to_bytes(8, "little") for word in words))
        snapshot = read_snapshot(fd, Shape(2, 5))
    finally:
        os.close(fd)
    task = make(snapshot)
    for render in (status, figures.stat, task_text.progress, task_text.threads, task_text.error):
        assert render(task).endswith("\n")
    assert task_text.progress_line(task, snapshot)


async def test_wait_ends_with_a_line_for_the_whole_and_the_state(autojump_clock: MockClock) -> None:
    task = make(replace(HALF, ended_ns=0))
    stream = WaitStream(task, 0, Change(), Portions())
    began = autojump_clock.current_time()
    assert (await stream.next_chunk()).startswith(b"[==========>.........]  50.0% (50/100)")
    assert autojump_clock.current_time() - began == pytest.approx(INTERVAL)
    assert not stream.ready()
    change_history(task, final=replace(HALF, phase=Phase.CANCELLED))
    task.state = State.CANCELLED
    assert stream.ready()
    line, state = (await stream.next_chunk()).decode().splitlines()
    assert (line.split(" speed=")[1], state) == ("25B/s", "cancelled")
    assert await stream.next_chunk() == b""


async def test_wait_on_a_task_that_ends_says_so_at_once(autojump_clock: MockClock) -> None:
    task = make(EMPTY, State.FAILED)
    stream = WaitStream(task, 0, Change(), Portions())
    assert await stream.next_chunk() == b"failed\n"
    assert await stream.next_chunk() == b""


async def test_wait_tells_of_the_end_as_soon_as_it_is_there(autojump_clock: MockClock) -> None:
    task, change = make(replace(HALF, ended_ns=0)), Change()
    stream = WaitStream(task, 0, change, Portions())
    began = autojump_clock.current_time()
    async with trio.open_nursery() as nursery:

        async def read() -> None:
            assert (await stream.next_chunk()).endswith(b"cancelled\n")

        nursery.start_soon(read)
        await wait_all_tasks_blocked()
        change_history(task, final=replace(HALF, phase=Phase.CANCELLED))
        task.state = State.CANCELLED
        change.notify()
    assert autojump_clock.current_time() == began
    stream.close()
    assert change.waiting == 0


def test_the_manual_is_a_screen_and_a_line_for_each_operation() -> None:
    few = dict(list(OPERATIONS.items())[:4])
    lines = manual(few).splitlines()
    assert len(lines) <= 24
    assert max(map(len, manual(OPERATIONS).splitlines())) <= 110
    for name in OPERATIONS:
        assert re.search(rf"^  {name} +[A-Z]\w+ ", manual(OPERATIONS), re.MULTILINE)


def test_a_table_is_aligned_and_has_no_trailing_blanks() -> None:
    text = table(("a", "long name"), [(1, 2), ("much longer", "")])
    assert text == "a            long name\n1            2\nmuch longer\n"
