"""The table of tasks: names, limits, order, and counts that are always correct."""

from __future__ import annotations

import itertools
import os
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from ktaskfs.errors import InvalidValue, NameTaken, NoSuchTask, TaskForgotten, TooManyTasks
from ktaskfs.operations.base.registry import find_operations
from ktaskfs.progress import Requests, Shape, read_requests
from ktaskfs.tasks import retention as ended_module
from ktaskfs.tasks.table import LAST_NAMES_MAX, UNFINISHED_MAX, USERS_MAX, TaskTable
from ktaskfs.tasks.task import ACTIVE, ENDED, Origin, State, Task
from ktaskfs.tasks.thread_sharing import helper_limit
from ktaskfs.tasks.tunables import TUNABLES, Settings
from ktaskfs.tasks.worker_handle import WorkerHandle
from tests.support.tasks import change_history, change_texts
from tests.tasks.house import CPUS

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("known_cpus")
TUNABLE = {each.name: each for each in TUNABLES}


def make_table(**tunables: int) -> TaskTable:
    return TaskTable(Settings(tunables))


def add(table: TaskTable, name: str, *, uid: int = 1) -> Task:
    table.check_names([name])
    task = Task(Origin.now(table.next_number(), name, uid, uid))
    table.add(task)
    return task


def test_tasks_are_found_by_name_and_listed_in_order_of_creation() -> None:
    table = make_table()
    tasks = [add(table, name) for name in ("c", "a", "b")]
    assert list(table) == tasks
    assert len(table) == 3
    assert table.get("a") is table.require("a") is tasks[1]
    assert tasks[1] in table
    assert "a" not in table
    with pytest.raises(NoSuchTask):
        table.require("d")


def test_a_name_is_taken_until_its_task_is_dropped() -> None:
    table = make_table()
    first = add(table, "a")
    with pytest.raises(NameTaken):
        table.check_names(["b", "a"])
    table.drop(first)
    second = add(table, "a")
    assert first not in table
    assert second in table
    assert first.number != second.number


@pytest.mark.parametrize(
    ("names", "message"),
    [("a a", "two tasks of one"), ("control", "no task can"), ("a/b", "not a task name"), ("..", "not a task name")],
)
def test_names_that_cannot_be_had(names: str, message: str) -> None:
    with pytest.raises((NameTaken, InvalidValue), match=message):
        make_table().check_names(names.split())


def test_a_free_name_is_neither_in_use_nor_spoken_for() -> None:
    table = make_table()
    add(table, "clear-7")
    assert table.free_name("clear", 7, 6) == "clear-6"
    assert table.free_name("clear", 7, 7) == "clear-8"
    assert table.free_name("clear", 7, 7, {"clear-8", "clear-9"}) == "clear-10"


def test_private_names_count_the_users_own_tasks() -> None:
    table = TaskTable(Settings({}), private_names=True)
    assert [table.free_name("clear", 7, number) for number in (5, 9)] == ["clear-7-1", "clear-7-2"]
    assert table.free_name("copy", 8, 30) == "copy-8-1"
    add(table, "clear-7-3")
    assert table.free_name("clear", 7, 50) == "clear-7-4"


def test_each_user_has_a_limit_of_unfinished_tasks() -> None:
    table = make_table(max_tasks=3)
    first = add(table, "a")
    add(table, "b")
    table.check_room(1, 1)
    with pytest.raises(TooManyTasks, match="2 unfinished tasks; the limit is 3"):
        table.check_room(1, 2)
    table.check_room(2, 3)
    table.move(first, State.DONE)
    table.check_room(1, 2)


def test_the_oldest_ended_tasks_are_overdue() -> None:
    table = make_table(keep_finished=1)
    tasks = [add(table, name) for name in "abc"]
    for task in (tasks[1], tasks[0]):
        table.move(task, State.DONE)
    assert table.overdue() == [tasks[1]]
    table.settings.set(TUNABLE["keep_finished"], "0")
    assert table.overdue() == [tasks[1], tasks[0]]
    table.settings.set(TUNABLE["keep_finished"], "2")
    assert table.overdue() == []


def end(table: TaskTable, names: str, *, uid: int, result: str = "") -> list[Task]:
    tasks = [add(table, f"{name}{uid}", uid=uid) for name in names]
    for task in tasks:
        change_history(task, result=result.encode())
        table.move(task, State.DONE)
    return tasks


def test_many_ended_tasks_of_one_user_cost_no_other_user_theirs() -> None:
    table = make_table(keep_finished=5)
    few = [*end(table, "a", uid=1), *end(table, "a", uid=2)]
    many = end(table, "abcdef", uid=3)
    assert table.overdue() == many[:3]
    table.settings.set(TUNABLE["keep_finished"], "3")
    assert table.overdue() == many[:5]
    table.settings.set(TUNABLE["keep_finished"], "0")
    assert set(table.overdue()) == {*few, *many}


def test_results_that_are_too_long_go_and_nobody_elses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ended_module, "RESULTS_MAX", 25)
    table = make_table()
    end(table, "ab", uid=1, result="x" * 10)
    mine = end(table, "abcd", uid=2, result="x" * 10)
    assert table.overdue() == mine[:2]
    for task in mine[:2]:
        table.drop(task)
    assert table.overdue() == []


def test_results_of_many_users_stay_below_the_total(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ended_module, "RESULTS_TOTAL", 100)
    table = make_table()
    few = end(table, "ab", uid=1, result="x" * 5)
    many = [end(table, "abc", uid=uid, result="x" * 15) for uid in (2, 3, 4)]
    assert table.overdue() == [tasks[0] for tasks in many]
    for tasks in many:
        table.drop(tasks[0])
    assert table.overdue() == []
    assert all(task in table for task in few)


def test_a_task_that_was_dropped_is_moved_nowhere() -> None:
    table = make_table()
    task = add(table, "a")
    table.drop(task)
    with pytest.raises(TaskForgotten):
        table.move(task, State.RUNNING)
    with pytest.raises(TaskForgotten):
        task.require({State.NEW}, "x")
    assert table.of_user(1) == []
    table.check_room(1, table.settings["max_tasks"])


def test_another_operation_takes_only_the_parameters_that_it_has() -> None:
    operations = find_operations()
    task = Task(Origin.now(1, "t", 1, 1))
    by_name = {each.name: each for each in operations["fallocate"].declared}
    task.define(operations["fallocate"], {})
    for name, text in (("path", "/f"), ("length", "1M"), ("mode", "0700"), ("nice", "5"), ("max_threads", "2")):
        task.set_parameter(by_name[name], text)
    task.define(operations["clear"], {})
    assert task.texts == {"path": "/f", "length": "1M", "nice": "5", "max_threads": "2"}
    for name, text in (("length", "-"), ("nice", "-"), ("max_threads", "max")):
        task.set_parameter(by_name[name], text)
    assert task.texts == {"path": "/f"}
    for name in ("path", "offset"):
        with pytest.raises(InvalidValue):
            task.set_parameter(by_name[name], "" if name == "path" else "-")


def test_the_tasks_of_a_user_are_those_that_have_not_ended() -> None:
    table = make_table()
    mine, _, ended = add(table, "a"), add(table, "b", uid=2), add(table, "c")
    table.move(ended, State.CANCELLED)
    assert table.of_user(1) == [mine]


def test_observers_hear_of_every_change() -> None:
    table = make_table()
    heard: list[tuple[str, State, bool]] = []
    table.observers.append(lambda task: heard.append((task.name, task.state, task in table)))
    task = add(table, "a")
    table.move(task, State.STARTING)
    table.drop(task)
    assert heard == [("a", State.NEW, True), ("a", State.STARTING, True), ("a", State.STARTING, False)]


def test_helpers_are_dealt_anew_whenever_a_task_begins_or_ends_or_a_tunable_changes() -> None:
    table = make_table(max_threads=1000)
    first, second = add(table, "a"), add(table, "b")
    table.move(first, State.RUNNING)
    alone = first.requests.threads
    assert alone == 1 + helper_limit(len(CPUS), 80)
    table.move(second, State.RUNNING)
    assert first.requests.threads + second.requests.threads <= 2 + helper_limit(len(CPUS), 80)
    table.move(second, State.DONE)
    assert first.requests.threads == alone
    table.settings.set(TUNABLE["max_threads"], "1")
    assert first.requests.threads == 1
    table.settings.set(TUNABLE["nice"], "7")
    assert first.requests.nice == 7
    change_texts(first, nice="2")
    table.rebalance()
    assert first.requests.nice == 2


@pytest.mark.parametrize("idle", [State.PAUSED, State.STARTING])
def test_a_task_that_cannot_use_its_helpers_leaves_them_to_others(idle: State) -> None:
    table = make_table(cpu_percent=100, max_threads=1000)
    first, second = add(table, "a"), add(table, "b")
    table.move(first, State.RUNNING)
    alone = first.requests.threads
    table.move(first, idle)
    table.move(second, State.RUNNING)
    assert (first.requests.threads, second.requests.threads) == (1, alone)
    table.move(second, State.DONE)
    table.move(first, State.RUNNING)
    assert first.requests.threads == alone > 1


@pytest.mark.parametrize("text", ["1", "max", "2147483647"])
def test_a_tasks_own_limit_of_threads_counts(text: str) -> None:
    table = make_table(cpu_percent=100, max_threads=1000)
    task = add(table, "a")
    change_texts(task, max_threads=text)
    table.move(task, State.RUNNING)
    assert task.requests.threads == (1 if text == "1" else len(CPUS))


def test_a_worker_that_cannot_be_told_does_not_stand_in_the_others_way(tmp_path: Path) -> None:
    table = make_table()
    broken, sound = add(table, "a"), add(table, "b")
    read_only = os.open(tmp_path, os.O_RDONLY)
    page = os.open(tmp_path / "page", os.O_RDWR | os.O_CREAT)
    ended = _ended_process()
    try:
        broken.worker = WorkerHandle(1, 1, ended, read_only, Shape(1, 1))
        table.move(broken, State.RUNNING)
        table.move(sound, State.RUNNING)
        sound.worker = WorkerHandle(1, 1, ended, page, Shape(1, 1))
        table.settings.set(TUNABLE["nice"], "3")
        assert (read_requests(page).nice, sound.requests.nice) == (3, 3)
        assert broken.requests == Requests()  # not noted as sent: the next change tries again
    finally:
        for fd in (read_only, page, ended):
            os.close(fd)


def _ended_process() -> int:
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    pidfd = os.pidfd_open(pid)
    os.waitpid(pid, 0)
    return pidfd


def test_what_is_remembered_of_users_is_bounded() -> None:
    table = make_table()
    for uid in range(USERS_MAX):
        table.note_last(uid, [f"t{uid}"])
    table.note_last(0, ["again"])
    table.note_last(USERS_MAX, ["new"])
    assert len(table.last_task) == USERS_MAX
    assert 1 not in table.last_task
    assert table.last_task[0] == ["again"]


class TableMachine(RuleBasedStateMachine):
    """Random lives of tasks; the table's own books must agree with what can be counted."""

    def __init__(self) -> None:
        super().__init__()
        self.table = make_table(max_tasks=100, max_queued=100)
        self.names = itertools.count()

    @rule(uid=st.integers(1, 3))
    def create(self, uid: int) -> None:
        add(self.table, f"t{next(self.names)}", uid=uid)

    @precondition(lambda self: len(self.table) > 0)
    @rule(data=st.data(), state=st.sampled_from(State))
    def move(self, data: st.DataObject, state: State) -> None:
        self.table.move(data.draw(st.sampled_from(list(self.table))), state)

    @precondition(lambda self: len(self.table) > 0)
    @rule(data=st.data())
    def drop(self, data: st.DataObject) -> None:
        self.table.drop(data.draw(st.sampled_from(list(self.table))))

    @invariant()
    def books_agree(self) -> None:
        tasks = list(self.table)
        for uid in range(1, 4):
            unfinished = [task for task in tasks if task.uid == uid and task.state not in ENDED]
            assert self.table.of_user(uid) == unfinished
            queued = sum(task.state is State.QUEUED for task in unfinished)
            for check, most, held in (
                (self.table.check_room, 100, len(unfinished) - queued),
                (self.table.check_queue, 100, queued),
            ):
                check(uid, most - held)
                with pytest.raises(TooManyTasks):
                    check(uid, most + 1 - held)
        ended = {task for task in tasks if task.state in ENDED}
        self.table.settings.set(TUNABLE["keep_finished"], "0")
        assert set(self.table.overdue()) == ended
        active = [task for task in tasks if task.state in ACTIVE]
        helpers = sum(task.requests.threads for task in active) - len(active)
        assert helpers <= helper_limit(len(CPUS), 80)
        assert all(task.requests.threads >= 1 for task in active)


TestTableMachine = TableMachine.TestCase
TestTableMachine.settings = hypothesis_settings(max_examples=30, stateful_step_count=30, deadline=None)


def test_the_names_of_last_tasks_are_bounded() -> None:
    table = make_table()
    for uid in range(1, 300):
        table.note_last(uid, [f"{uid}-{number}" for number in range(64)])
    assert sum(map(len, table.last_task.values())) <= LAST_NAMES_MAX
    assert 299 in table.last_task
    table.note_last(1, [str(number) for number in range(2 * LAST_NAMES_MAX)])
    assert list(table.last_task) == [1]  # the last is always known


def test_unfinished_tasks_of_all_users_are_bounded_however_many_descriptors_there_are() -> None:
    table = TaskTable(Settings({"max_tasks": 65536}), descriptors=1 << 30)
    _ = [add(table, f"t{number}", uid=0) for number in range(UNFINISHED_MAX)]
    with pytest.raises(TooManyTasks):
        table.check_room(0, 1)
