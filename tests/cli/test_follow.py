"""What a command sees of a task while other commands act on it."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import pytest

from ktaskfs.cli.follow import follow
from ktaskfs.cli.interrupts import OwnInterrupts
from ktaskfs.cli.mounted import Mounted
from ktaskfs.cli.orders import Orders
from ktaskfs.cli.start import does_the_same

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
