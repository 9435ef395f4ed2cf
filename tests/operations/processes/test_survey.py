"""``survey`` of a process: its pages in memory."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import signal
import subprocess
from typing import TYPE_CHECKING, Final

import pytest

from ktaskfs.errors import InvalidValue, TargetError
from ktaskfs.host.page_table import PageTable
from ktaskfs.host.process_memory import Process
from ktaskfs.ktask import TaskError
from tests.operations.processes.victim import victim
from tests.support.forked import run_forked
from tests.support.memory_files import HUGE

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.runner import Runner
    from tests.support.users import User

PAGE: Final = 4096


@pytest.fixture(params=["scan", "entries"])
def scans(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether the kernel examines many pages in one call; otherwise as before Linux 6.7."""
    with (
        contextlib.closing(Process.find(os.getpid())) as own,
        contextlib.closing(PageTable(own.open("pagemap"))) as table,
    ):
        scans = bool(request.param == "scan" and table.tells_huge)
    monkeypatch.setattr(PageTable, "_can_scan", lambda table: scans)
    return scans


def survey(runner: Runner, **texts: object) -> tuple[dict[str, str], list[dict[str, str]]]:
    """The sums, and a row for each mapping."""
    text = runner.result(runner.prepare("survey", **texts))
    head, _, table = text.partition("start end ")
    names, *rows = (line.split(None, 9 + 1) for line in f"start end {table}".splitlines())
    return dict(line.split() for line in head.splitlines()), [dict(zip(names, row, strict=True)) for row in rows]


@contextlib.contextmanager
def mapped(flags: int, size: int, fd: int = -1) -> Iterator[tuple[mmap.mmap, int]]:
    """Memory of this process, and its address."""
    memory = mmap.mmap(fd, size, flags)
    view = ctypes.c_char.from_buffer(memory)
    address = ctypes.addressof(view)
    del view
    try:
        yield memory, address
    finally:
        memory.close()


def test_pages_that_are_there(runner: Runner, root: None, scans: bool) -> None:
    with mapped(mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, 64 * PAGE) as (memory, address):
        memory.madvise(mmap.MADV_NOHUGEPAGE)
        for page in (0, 1, 2, 40, 63):
            memory[page * PAGE] = 1
        sums, (row,) = survey(runner, pid=os.getpid(), mapping=address)
    # The kernel joins neighbours that are alike to one mapping.
    assert int(row["pages"]) >= 64
    assert int(row["present"]) == int(sums["present"]) == int(row["anonymous"]) == int(row["node0"]) >= 5
    assert (sums["swapped"], sums["file"], sums["huge"]) == ("0", "0", "0" if scans else "-")
    assert (int(row["start"], 16) <= address, row["permissions"]) == (True, "rw-p")


@pytest.mark.usefixtures("scans")
def test_pages_of_a_file(runner: Runner, tmpfs: Path) -> None:
    path = tmpfs / "a file"
    path.write_bytes(bytes(10 * PAGE))
    with path.open("r+b") as file, mapped(mmap.MAP_SHARED, 10 * PAGE, file.fileno()) as (memory, address):
        memory[3 * PAGE] = 1
        _, (row,) = survey(runner, pid=os.getpid(), mapping=address)
    assert 1 <= int(row["present"]) == int(row["file"]) <= 10
    assert (row["pages"], row["anonymous"], row["name"]) == ("10", "0", str(path))


def test_huge_pages_are_told(runner: Runner, root: None, scans: bool) -> None:
    with victim(size=8 * HUGE) as process:
        runner.run("collapse", pid=process.pid, mapping=process.address)
        sums, (row,) = survey(runner, pid=process.pid, mapping=process.address)
        assert int(row["present"]) >= process.size // PAGE
        assert row["huge"] == sums["huge"] == (str(process.huge() // PAGE) if scans else "-")


@pytest.mark.usefixtures("scans")
def test_all_mappings_are_what_the_kernel_counts(runner: Runner, root: None) -> None:
    with victim(size=8 * HUGE) as process:
        sums, rows = survey(runner, pid=process.pid)
        with contextlib.closing(Process.find(process.pid)) as found:
            counts = found.counts("smaps_rollup")
            areas = [area for area in found.areas() if not area.name.startswith("[v")]
    # PFNs of no file, such as those of the kernel's page of zeros, are in the one and not in the other.
    assert abs(int(sums["present"]) * PAGE - counts["Rss"]) <= 16 * PAGE
    assert int(sums["swapped"]) * PAGE == counts["Swap"]
    assert [(int(row["start"], 16), int(row["end"], 16)) for row in rows] == [(each.start, each.end) for each in areas]
    assert sum(int(row["pages"]) for row in rows) == int(sums["pages"])
    assert (sums["mappings"], sums["left_out"]) == (str(len(areas)), "0")


def test_what_a_spec_may_not_mix(runner: Runner, root: None, tmpfs: Path) -> None:
    error = runner.refused("survey", pid=os.getpid(), path=tmpfs)
    assert (type(error), error.message) == (InvalidValue, "pid is not for a file of memory")
    error = runner.refused("survey", path=tmpfs / "none", mapping=1)
    assert isinstance(error, InvalidValue)


def test_a_process_that_ends_meanwhile(runner: Runner, root: None) -> None:
    with victim(size=HUGE) as process:
        plan = runner.prepare("survey", pid=process.pid)
        process.close()
        with pytest.raises(TaskError, match=f"process {process.pid} has ended"):
            runner.work(plan)


@pytest.mark.usefixtures("scans")
@pytest.mark.parametrize(("operation", "texts"), [("survey", {}), ("migrate", {"nodes": 0})])
def test_a_process_whose_parent_does_not_notice_its_end(
    runner: Runner, root: None, operation: str, texts: dict[str, object]
) -> None:
    """A zombie has no memory: a table of zeros would not be what was asked for."""
    with victim(size=HUGE) as process:
        plan = runner.prepare(operation, pid=process.pid, **texts)
        os.kill(process.pid, signal.SIGKILL)
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        with pytest.raises(TaskError, match=f"process {process.pid} has ended"):
            runner.work(plan)


def test_an_ordinary_user_looks_at_its_own_processes_alone(runner: Runner, two_users: tuple[User, User]) -> None:
    user, _ = two_users
    with victim(size=HUGE) as process:

        def looks() -> tuple[int, str]:
            os.setresgid(user.gid, user.gid, user.gid)
            os.setresuid(user.uid, user.uid, user.uid)
            refusal = runner.refused("survey", pid=process.pid)
            assert isinstance(refusal, TargetError)
            with subprocess.Popen(["sleep", "60"]) as own:
                try:
                    return int(survey(runner, pid=own.pid)[0]["present"]), refusal.errname
                finally:
                    own.kill()

        present, refused = run_forked(looks)
    assert (present > 0, refused) == (True, "EACCES")
