"""What a command sees of a task while other commands act on it."""

from __future__ import annotations

import errno
import functools
import os
from typing import TYPE_CHECKING

import pytest

from ktaskfs.cli.follow import follow
from ktaskfs.cli.interrupts import OwnInterrupts
from ktaskfs.cli.mounted import Mounted
from ktaskfs.cli.orders import Orders
from ktaskfs.cli.start import IfExists, Started, does_the_same, start

if TYPE_CHECKING:
    from pathlib import Path

    from tests.cli.conftest import Command


class Replaced(Mounted):
    """Another command runs ``heir``, just before the result is read for the first time."""

    heir = ""

    def read(self, file: str) -> str:
        if file == "tasks/sum/result" and self.heir:
            text, type(self).heir = self.heir, ""
            self.start(f"{text} replace=1")
        return super().read(file)


@pytest.mark.parametrize("rest", ["", " length=4096"])
def test_a_task_of_the_same_name_is_followed_only_by_a_rerun(command: Command, memory: Path, rest: str) -> None:
    spec = f"checksum path={memory}/file name=sum"
    assert command("run", spec).status == 0
    standings = []
    for is_rerun in (False, True):
        mounted = type("OnceReplaced", (Replaced,), {"heir": spec + rest})(str(command.mount.path))
        is_heir = functools.partial(does_the_same, mounted, spec if is_rerun else "")
        with OwnInterrupts() as interrupts:
            *_, (standing,) = follow(mounted, ["sum"], 1, interrupts, Orders(None), is_heir)
        standings.append(standing)
    assert (standings[0].state, standings[0].result) == ("forgotten", None)
    does_other_work = rest != ""
    assert standings[1].state == ("forgotten" if does_other_work else "done")
    assert (standings[1].result is None) == does_other_work


class Removed(Mounted):
    """Another command removes the task, just before this one looks at ``what`` for the first time."""

    what = ""

    def owner(self, task: str) -> int | None:
        self._removes_at("owner")
        return super().owner(task)

    def read(self, file: str) -> str:
        self._removes_at(file)
        return super().read(file)

    def start(self, text: str) -> list[str]:
        names = super().start(text)
        self._removes_at("start")
        return names

    def _removes_at(self, what: str) -> None:
        if what == self.what:
            type(self).what = ""
            os.rmdir(f"{self.path}/tasks/sum")


@pytest.mark.parametrize("what", ["owner", "tasks/sum/op", "tasks/sum/path"])
def test_a_task_that_is_removed_before_it_is_joined_is_started(command: Command, memory: Path, what: str) -> None:
    spec = f"checksum path={memory}/file name=sum"
    assert command("run", spec).status == 0
    mounted = type("OnceRemoved", (Removed,), {"what": what})(str(command.mount.path))
    assert start(mounted, spec, IfExists.JOIN, plan=False) == Started(["sum"], [])
    assert mounted.what == ""
    assert command.mount.read("tasks/sum/wait").endswith("done\n")


def test_a_task_that_is_removed_before_its_resume_does_not_hide_the_others(command: Command, memory: Path) -> None:
    spec = f"checksum path={memory}/file name="
    assert command("run", f"{spec}sum").status == 0
    mounted = type("OnceRemoved", (Removed,), {"what": "start"})(str(command.mount.path))
    names, refused = start(mounted, f"{spec}sum\n{spec}other", IfExists.RESUME, plan=False)
    assert (names, [each.errno for each in refused]) == (["other"], [errno.ENOENT])
    assert command.mount.read("tasks/other/wait").endswith("done\n")
