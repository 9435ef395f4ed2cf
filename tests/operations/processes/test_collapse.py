"""``collapse``: small pages of a process become huge pages with the same contents."""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING

import pytest

from ktaskfs.errors import InvalidValue, NotSupported, TargetError
from ktaskfs.ktask import TaskError
from ktaskfs.span import Node
from tests.operations.processes.victim import PAGES, digest_of, victim
from tests.support.forked import run_forked
from tests.support.memory_files import HUGE

if TYPE_CHECKING:
    from tests.support.runner import Runner
    from tests.support.users import User


@pytest.mark.parametrize("threads", [1, 2])
def test_all_of_a_mapping(runner: Runner, root: None, threads: int) -> None:
    with victim() as process:
        plan = runner.prepare("collapse", pid=process.pid, mapping=process.address)
        result = values(runner.result(plan, threads=threads))
        whole = process.huge()
        assert whole >= (PAGES - 2) * HUGE  # the ends of the mapping may not be aligned
        assert (result["mappings"], result["left"]) == ("1", "0")
        assert int(result["huge_before"]) <= int(result["huge_after"]) >= whole  # khugepaged may have begun
        assert int(result["collapsed"]) == whole
        assert process.digest() == digest_of(process.size)


def test_every_mapping(runner: Runner, root: None) -> None:
    with victim() as process:
        result = values(runner.result(runner.prepare("collapse", pid=process.pid)))
        assert int(result["mappings"]) > 0
        assert int(result["collapsed"]) >= (PAGES - 2) * HUGE
        assert process.digest() == digest_of(process.size)


def test_what_the_process_has_refused_is_left_and_told(runner: Runner, root: None) -> None:
    with victim("refuses") as process:
        result = runner.result(runner.prepare("collapse", pid=process.pid, mapping=process.address))
        found = values(result)
        assert int(found["collapsed"]) == 0
        assert int(found["left"]) >= (PAGES - 2) * HUGE
        assert result.splitlines()[-1] == f"EINVAL {found['left']}"
        assert process.huge() == 0


def test_a_process_without_huge_pages_is_refused(runner: Runner, root: None) -> None:
    with victim("off") as process:
        error = runner.refused("collapse", pid=process.pid)
        assert (type(error), "PR_SET_THP_DISABLE" in error.message) == (NotSupported, True)


def test_what_is_not_there(runner: Runner, root: None) -> None:
    with victim(size=HUGE) as process:
        error = runner.refused("collapse", pid=process.pid, mapping="0x1000")
        assert (type(error), error.message) == (InvalidValue, f"process {process.pid} has no mapping at 0x1000")
        process.close()
        gone = runner.refused("collapse", pid=process.pid)
        assert (type(gone), gone.errname) == (TargetError, "ESRCH")


def test_a_process_that_ends_meanwhile_ends_the_task(runner: Runner, root: None) -> None:
    with victim() as process:
        plan = runner.prepare("collapse", pid=process.pid, mapping=process.address)
        process.close()
        with pytest.raises(TaskError, match=f"process {process.pid} has ended"):
            runner.work(plan)


def test_an_ordinary_user_is_told_what_is_missing(runner: Runner, two_users: tuple[User, User]) -> None:
    """For the own process the task lacks a capability, for another user's the right to look."""
    user, _ = two_users
    with victim(size=HUGE) as process:

        def refusals() -> list[str]:
            os.setresgid(user.gid, user.gid, user.gid)
            os.setresuid(user.uid, user.uid, user.uid)
            with subprocess.Popen(["sleep", "60"]) as own:
                try:
                    return [runner.refused("collapse", pid=pid).message for pid in (own.pid, process.pid)]
                finally:
                    own.kill()

        own, other = run_forked(refusals)
        assert own.endswith("you need CAP_SYS_NICE")
        assert other == f"collapse memory of process {process.pid}: Permission denied"


def values(result: str) -> dict[str, str]:
    """The lines ``key value`` above the table."""
    return dict(line.split() for line in result.partition("reason bytes\n")[0].splitlines())


def test_a_rest_is_not_done_alone(runner: Runner, root: None) -> None:
    with victim(size=8 * HUGE) as process:
        error = runner.refused("collapse", [Node(0, HUGE)], pid=process.pid)
        assert isinstance(error, NotSupported)
        assert "the process may have changed its mappings" in error.message
