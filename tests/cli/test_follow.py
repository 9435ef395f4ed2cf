"""What a command sees of a task while other commands act on it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ktaskfs.cli.follow import follow
from ktaskfs.cli.interrupts import OwnInterrupts
from ktaskfs.cli.mounted import Mounted
from ktaskfs.cli.orders import Orders

if TYPE_CHECKING:
    from pathlib import Path

    from tests.cli.conftest import Command


def test_the_result_of_another_task_of_the_same_name_is_not_shown(command: Command, memory: Path) -> None:
    spec = f"checksum path={memory}/file name=sum"
    assert command("run", spec).status == 0

    class Replaced(Mounted):
        """Another command starts the work again, just before the result is read."""

        def read(self, file: str) -> str:
            if file == "tasks/sum/result":
                self.start(f"{spec} replace=1")
            return super().read(file)

    with OwnInterrupts() as interrupts:
        *_, (standing,) = follow(Replaced(str(command.mount.path)), ["sum"], 1, interrupts, Orders(None))
    assert (standing.state, standing.result) == ("forgotten", None)
