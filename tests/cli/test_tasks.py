"""``ktaskfs ls``, ``show``, ``cancel``, ``pause``, ``resume``, ``kill``, ``set`` and ``events``."""

from __future__ import annotations

import json
import signal
import subprocess
from typing import TYPE_CHECKING

import psutil
import pytest

from ktaskfs.cli.events import as_object
from ktaskfs.cli.tables import rows
from tests.support.daemon import ROOT, Mount
from tests.support.poll import DEADLINE, until
from tests.support.shell import Outcome, run
from tests.support.slow import start_slow, stop

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.cli.conftest import Command
    from tests.conftest import MountMaker
    from tests.support.users import User


@pytest.fixture
def tasks(command: Command, memory: Path) -> Iterator[Mount]:
    """Four tasks: vm0 and vm1 run, one is done, and one is new."""
    mount = command.mount
    for name in ("vm0", "vm1"):
        start_slow(mount, memory, name)
    assert command("run", "--quiet", "checksum", f"path={memory}/file", "name=sum").status == 0
    (mount.path / "tasks/empty").mkdir()
    yield mount
    stop(mount, *(name for name in ("vm0", "vm1") if mount.read(f"tasks/{name}/state") in ("running\n", "paused\n")))


def state(mount: Mount, name: str) -> str:
    return mount.read(f"tasks/{name}/state").strip()


@pytest.mark.usefixtures("tasks")
def test_ls(command: Command) -> None:
    def names(*patterns: str) -> list[str]:
        header, *lines = command("ls", *patterns).out.splitlines()
        assert header.split()[:3] == ["name", "operation", "state"]
        found = [line.split()[0] for line in lines]
        objects = [json.loads(line) for line in command("ls", "--json", *patterns).out.splitlines()]
        assert [each["name"] for each in objects] == found
        return found

    assert names() == ["vm0", "vm1", "empty", "sum"]
    assert names("vm*") == ["vm0", "vm1"]
    assert names("sum", "?m1") == ["vm1", "sum"]
    assert command("ls", "vm0", "none") == Outcome(1, "", "ktaskfs: there is no task none\n")


def test_ls_of_nothing(command: Command) -> None:
    assert command("ls").out.count("\n") == 1
    assert command("ls", "--json") == Outcome(0, "", "")


def test_show(command: Command, tasks: Mount) -> None:
    outcome = command("show", "sum", "empty")
    assert outcome.status == 0
    both = outcome.out.split("\nName:")
    assert both[0].startswith("Name:\tsum\n")
    assert tasks.read("tasks/sum/threads") in both[0]
    assert both[0].endswith(f"\n{tasks.read('tasks/sum/result')}")
    assert both[1].startswith("\tempty\n")
    found, empty = (json.loads(line) for line in command("show", "--json", "sum", "empty").out.splitlines())
    assert json.loads(tasks.read("tasks/sum/stat.json")).items() <= found.items()
    assert found["parameters"].items() >= {"max_threads": "max", "rate_max": "max", "nodes": None}.items()
    assert found["result"] == tasks.read("tasks/sum/result")
    assert sum(each["done"] for each in found["thread_list"]) == found["done"]
    assert (empty["parameters"], empty["thread_list"]) == ({}, [])


def test_verbs_by_name_and_by_glob(command: Command, tasks: Mount) -> None:
    assert command("pause", "vm0") == Outcome(0, "vm0\n", "")
    assert (state(tasks, "vm0"), state(tasks, "vm1")) == ("paused", "running")
    assert command("pause", "*") == Outcome(0, "vm1\n", "")
    assert command("resume", "vm*", "vm1") == Outcome(0, "vm0\nvm1\n", "")
    assert (state(tasks, "vm0"), state(tasks, "vm1")) == ("running", "running")
    assert command("kill", "vm0").status == 0
    until(lambda: state(tasks, "vm0") == "interrupted", "it is killed")
    assert command("cancel", "*") == Outcome(0, "vm1\n", "")
    assert command("wait", "--quiet", "vm1").status == 3
    nothing = command("cancel", "vm*")
    assert nothing == Outcome(1, "", "ktaskfs: vm*: no task that matches vm* accepts cancel now\n")


@pytest.mark.parametrize("verb", ["show", "ls", "wait"])
def test_a_name_without_a_task_is_no_object(command: Command, verb: str) -> None:
    """Whoever reads objects sees none, and the status."""
    assert command(verb, "--json", "none") == Outcome(1, "", "ktaskfs: there is no task none\n")


def test_what_does_not_fit_is_said_and_the_rest_is_done(command: Command, tasks: Mount) -> None:
    outcome = command("pause", "sum", "none", "vm0")
    assert (outcome.status, outcome.out) == (1, "vm0\n")
    assert outcome.err.splitlines() == [
        "ktaskfs: sum: pause does not fit: task sum is done",
        "ktaskfs: none: there is no task none",
    ]
    found = [json.loads(line) for line in command("resume", "--json", "sum", "vm0").out.splitlines()]
    assert [(each["name"], each["command"], each["errno"]) for each in found] == [
        ("sum", "resume", 16),
        ("vm0", "resume", None),
    ]
    assert state(tasks, "vm0") == "running"


def test_set(command: Command, tasks: Mount) -> None:
    assert command("set", "vm0", "rate_max=128K", "max_threads=1") == Outcome(0, "vm0\n", "")
    assert (tasks.read("tasks/vm0/rate_max"), tasks.read("tasks/vm0/max_threads")) == ("128K\n", "1\n")
    assert command("set", "*", "nice=7") == Outcome(0, "empty\nvm0\nvm1\n", "")
    assert tasks.read("tasks/vm1/nice") == "7\n"
    for words, status, complaint in (
        (["vm0"], 2, "nothing to set: write KEY=VALUE after the names"),
        (["vm0", "control=cancel"], 2, "control is not a parameter"),
        (["vm0", "nice=20"], 1, "ktaskfs: vm0: nice: '20' is above the maximum, 19"),
        (["sum", "nice=2"], 1, "ktaskfs: sum: setting nice does not fit: "),
        (["vm0", "nonesuch=2"], 1, "ktaskfs: vm0: there is no parameter 'nonesuch'"),
        (["vm0", "nice="], 2, "nice has no value"),
    ):
        outcome = command("set", *words)
        assert (outcome.status, outcome.out) == (status, "")
        assert complaint in outcome.err
    assert state(tasks, "vm0") == "running"


def test_tasks_of_others(
    mount_maker: MountMaker, memory: Path, two_users: tuple[User, User], public_root: Path, command: Command
) -> None:
    """A glob leaves out tasks that the caller may not read, or not change. A name does not."""
    mount = mount_maker("mode=0666")
    start_slow(mount, memory, "roots")
    start_slow(mount, memory, "anns", user=two_users[0])

    def as_ann(*words: str) -> Outcome:
        all_words = command.words(*words)
        all_words[5] = str(mount.path)
        return run(*all_words, user=two_users[0], cwd=public_root)

    assert "roots" in as_ann("ls").out
    assert as_ann("pause", "*") == Outcome(0, "anns\n", "")
    refused = as_ann("pause", "roots")
    assert (refused.status, refused.out) == (1, "")
    assert refused.err.startswith("ktaskfs: roots: ")
    assert mount.read("tasks/roots/state") == "running\n"

    left_out = "left out, because you may not read them: 1 of 2 tasks"
    shown = as_ann("show", "*", "anns")
    assert (shown.status, shown.err) == (0, f"ktaskfs: {left_out}\n")
    assert [line for line in shown.out.splitlines() if line.startswith("Name:")] == ["Name:\tanns"]
    stop(mount, "anns")
    waited = as_ann("wait", "*")
    assert (waited.status, waited.err.splitlines()[0]) == (3, left_out)
    quiet = as_ann("wait", "--quiet", "*")
    assert (quiet.status, quiet.err.startswith("ktaskfs: anns was cancelled at ")) == (3, True)
    assert as_ann("show", "r*") == Outcome(1, "", "ktaskfs: you may not read any task that matches r*\n")
    for verb in ("show", "wait"):
        assert (as_ann(verb, "roots").status, as_ann(verb, "anns", "roots").status) == (1, 1)
    stop(mount, "roots")


def test_a_task_that_is_not_kept_is_not_called_removed_before_its_end(command: Command, memory: Path) -> None:
    command.mount.write("debug/ktask_keep_finished", "0")
    words = "ktaskfs: gone was removed, or has ended and was not kept (debug/ktask_keep_finished)\n"
    assert command("run", "--quiet", f"checksum path={memory}/file name=gone") == Outcome(1, "", words)


def test_events(command: Command, memory: Path, area: Path) -> None:
    mount = command.mount
    plain = subprocess.Popen(command.words("events"), cwd=ROOT, stdout=subprocess.PIPE, text=True)
    some = subprocess.Popen(command.words("events", "--json", "vm*"), cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert plain.stdout is not None
    assert some.stdout is not None

    def is_open(process: subprocess.Popen[str]) -> bool:
        reader, *_ = [*psutil.Process(process.pid).children(), None]  # the other process hears ^C
        return reader is not None and "events" in run("bash", "-c", f"readlink /proc/{reader.pid}/fd/*").out

    try:
        until(lambda: is_open(plain) and is_open(some), "both read")
        for name in ("other", "vm0"):
            (mount.path / f"tasks/{name}").mkdir()
        assert [plain.stdout.readline().split()[1:4] for _ in range(2)] == [["other", "-", "new"], ["vm0", "-", "new"]]
        event = json.loads(some.stdout.readline())
        assert event | {"time": 0} == {"time": 0, "task": "vm0", "old": None, "new": "new", "op": None, "uid": 0}
        assert event["time"] > 1e9

        mount.process.kill()
        mount.process.wait()
        again = Mount(mount.path, statedir=mount.statedir, log=area / "again")
        until(lambda: is_open(plain), "it reads again")
        (mount.path / "tasks/vm1").mkdir()
        line = plain.stdout.readline().split()
        while line[1] != "vm1":  # what was there before comes again
            line = plain.stdout.readline().split()
        assert line[2:4] == ["-", "new"]
    finally:
        for process in (plain, some):
            process.send_signal(signal.SIGINT)
            assert process.wait(DEADLINE) == -signal.SIGINT, "the script that runs it ends, too"
            process.communicate()
    again.close()
    mount.kill()


def test_an_event_as_an_object() -> None:
    assert as_object("1795380200.373948 vm0 starting running op=fallocate uid=0 new_key=x=y") == {
        "time": 1795380200.373948,
        "task": "vm0",
        "old": "starting",
        "new": "running",
        "op": "fallocate",
        "uid": 0,
        "new_key": "x=y",
    }
    assert as_object("1.000000 - - - lost=12") == {"time": 1.0, "task": None, "old": None, "new": None, "lost": 12}


def test_rows_of_a_table() -> None:
    table = "name  meaning\nundo  undo this run\nx     y\n"
    assert rows(table) == [{"name": "undo", "meaning": "undo this run"}, {"name": "x", "meaning": "y"}]
    assert rows("tid  node\n") == []
