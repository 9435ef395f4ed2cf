"""``migrate`` of a process, on a machine with one node; with two it is tested in the virtual machine."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from ktaskfs.errors import InvalidValue, NotSupported
from ktaskfs.ktask import TaskError
from ktaskfs.span import Node
from tests.operations.processes.victim import digest_of, victim
from tests.support.memory_files import HUGE

if TYPE_CHECKING:
    from tests.support.runner import Runner


@pytest.mark.parametrize("collapsed", [False, True])
def test_pages_that_are_there_already(runner: Runner, root: None, collapsed: bool) -> None:
    with victim(size=8 * HUGE) as process:
        if collapsed:
            runner.run("collapse", pid=process.pid, mapping=process.address)
        text = runner.result(runner.prepare("migrate", pid=process.pid, mapping=process.address, nodes=0))
        head, _, table = text.partition("outcome node pages\n")
        found = dict(line.split() for line in head.splitlines())
        assert (found["mappings"], found["moved"], found["failed"]) == ("1", "0", "0")
        assert int(found["there"]) >= process.size // 4096
        assert table == f"there 0 {found['there']}\n"
        assert process.digest() == digest_of(process.size)


def test_what_is_refused(runner: Runner, root: None) -> None:
    with victim(size=HUGE) as process:
        error = runner.refused("migrate", pid=process.pid)
        assert (type(error), error.message) == (InvalidValue, "nodes is missing: the destination of the pages")
        error = runner.refused("migrate", pid=process.pid, nodes=0, mapping="0x1000")
        assert (type(error), error.message) == (InvalidValue, f"process {process.pid} has no mapping at 0x1000")
        error = runner.refused("migrate", [Node(0, 1)], pid=process.pid, nodes=0)
        assert isinstance(error, NotSupported)


def test_a_process_that_ends_meanwhile(runner: Runner, root: None) -> None:
    with victim(size=HUGE) as process:
        plan = runner.prepare("migrate", pid=process.pid, nodes=0)
        process.close()
        with pytest.raises(TaskError, match=f"process {process.pid} has ended"):
            runner.work(plan)
