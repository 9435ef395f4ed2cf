"""A file without a path: memory that a process has mapped (``pid=``, ``mapping=``)."""

from __future__ import annotations

import ctypes
import errno
import os
from typing import TYPE_CHECKING

import pytest

from ktaskfs.errors import InvalidValue, NotSupported, TargetError
from ktaskfs.operations.base.parameters import build_parameters
from tests.operations.contract import descriptors
from tests.operations.trees.ground import as_nobody
from tests.support import filesystems
from tests.support.holding import holding, used
from tests.support.memory_files import HUGE
from tests.support.programs import ended, running

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.hugepages import TestPool
    from tests.support.runner import Place, Runner

HOW = {
    "sysv": "/SYSV",
    "memfd": "/memfd:",
    "memfd, closed": "/memfd:",
    "file, open and deleted": "held",
    "file, mapped and deleted": "held",
    "shared": "/anon_hugepage",
}
"""Ways to hold huge pages, and the file's name in maps, proc_pid_maps(5)."""
NOBODY = 65534
CLONE_NEWUSER = 0x10000000
TWO_FILES = """
memory = mmap.mmap(-1, 1 << 20)
memory[:] = b"a" * len(memory)
fd = os.memfd_create("other")
os.ftruncate(fd, 8 << 20)
part = mmap.mmap(fd, 2 << 20, offset=4 << 20)
part[:] = b"b" * len(part)
private = mmap.mmap(fd, 1 << 20, flags=mmap.MAP_PRIVATE)
"""
SYSV = """
import ctypes
libc = ctypes.CDLL(None)
libc.shmat.restype = ctypes.c_void_p
number = libc.shmget(0, ctypes.c_size_t(1 << 20), 0o1600)
assert libc.shmat(number, None, 0) > 0
libc.shmctl(number, 0, None)
"""
MEMFD = """
fd = os.memfd_create("guest")
os.ftruncate(fd, 1 << 20)
memory = mmap.mmap(fd, 0)
memory[:] = b"m" * len(memory)
"""


def mapped(pid: int, name: str, permissions: str = "rw-s") -> str:
    """The address of the mapping of a file whose name has ``name`` in it."""
    with open(f"/proc/{pid}/maps") as file:
        (line,) = [each for each in file if name in each and each.split()[1] == permissions]
    return f"0x{line.partition('-')[0]}"


def planned(runner: Runner, **texts: object) -> dict[str, str]:
    """The plan of fallocate."""
    text = runner.result(runner.prepare("fallocate", **texts, plan=1))
    return dict(line.split() for line in text.splitlines())


@pytest.mark.parametrize("how", HOW)
def test_huge_pages_that_no_path_names(runner: Runner, pool_2m: TestPool, area: Path, root: None, how: str) -> None:
    with filesystems.hugetlbfs(area / "huge", HUGE) as huge, holding(how, HUGE, huge / "held") as holder:
        address = mapped(holder.pid, HOW[how])
        texts = {"pid": holder.pid, "mapping": address}
        before, told = descriptors(), planned(runner, **texts)
        assert planned(runner, **texts) == told
        runner.run("fallocate", **texts)
        assert planned(runner, **texts)["allocates"] == "0"
        runner.run("fill", **texts, pattern="a7")
        checked = dict(
            line.split() for line in runner.result(runner.prepare("verify", **texts, pattern="a7")).splitlines()[:5]
        )
        assert (checked["compared"], checked["holes"], checked["differing"]) == (told["total"], "0", "0")
        with open(f"/proc/{holder.pid}/mem", "rb") as memory:
            memory.seek(int(address, 16))
            assert memory.read(9) == b"\xa7" * 9
        runner.run("clear", **texts)
        empty = runner.result(runner.prepare("checksum", **texts))
        runner.run("free", **texts)
        assert runner.result(runner.prepare("checksum", **texts)) == empty
        assert planned(runner, **texts)["allocates"] == told["total"]
        assert descriptors() == before


def test_a_deleted_file(runner: Runner, place: Place) -> None:
    path = place.directory / "held"
    path.touch()
    os.truncate(path, 2 * max(place.unit, HUGE))
    with used(path, "maps") as process:
        path.unlink()
        runner.run("fallocate", pid=process.pid, mapping=mapped(process.pid, "held (deleted)"))
        runner.run("fill", pid=process.pid)
        assert "differing 0\n" in runner.result(runner.prepare("verify", pid=process.pid))


def test_the_range_is_what_is_mapped(runner: Runner, root: None) -> None:
    """Without offset and length; offsets are those of the file."""
    process = running(TWO_FILES)
    try:
        part = {"pid": process.pid, "mapping": mapped(process.pid, "/memfd:other")}
        assert runner.run("verify", **part, pattern="62").units_done == 2 << 20
        assert runner.run("verify", **part, pattern="62", offset="5M", length="1M").units_done == 1 << 20
        assert runner.run("checksum", **part, offset="4M").units_done == 4 << 20
        runner.run("clear", **part)
        with open(f"/proc/{process.pid}/fd/3", "rb") as file:
            assert not any(file.read())
    finally:
        ended(process)


def test_memory_is_compared_with_a_file(runner: Runner, area: Path, root: None) -> None:
    process = running(TWO_FILES)
    source = area / "source"
    source.write_bytes(b"b" * (2 << 20))
    try:
        part = {"pid": process.pid, "mapping": mapped(process.pid, "/memfd:other"), "source": source}
        assert runner.result(runner.prepare("compare", **part)) == "equal\n"
        with source.open("r+b") as file:
            file.seek(7)
            file.write(b"xyz")
        assert runner.result(runner.prepare("compare", **part)) == f"first {(4 << 20) + 7}\ndiffering 3\n"
        assert isinstance(runner.refused("compare", pid=process.pid, source=source), InvalidValue)
        assert runner.refused("copy", pid=process.pid, source=source).message == "unknown parameter 'pid'"
    finally:
        ended(process)


def test_what_is_refused(runner: Runner, root: None) -> None:
    process = running(TWO_FILES)
    pid = process.pid
    try:
        several = runner.refused("clear", pid=pid)
        assert isinstance(several, InvalidValue)
        assert f"mapping={mapped(pid, '/memfd:other')} (2M of /memfd:other (deleted))" in several.message
        for mapping, words in {
            "0x1000": f"process {pid} has no mapping at 0x1000",
            mapped(pid, "[stack]", "rw-p"): "is memory without a file",
            mapped(pid, "/memfd:other", "rw-p"): "is a private mapping",
        }.items():
            error = runner.refused("checksum", pid=pid, mapping=mapping)
            assert isinstance(error, InvalidValue)
            assert words in error.message
        wrong: list[tuple[dict[str, object], str]] = [
            ({"pid": pid, "path": "/dev/shm/x"}, "path and pid both name a file: give only one"),
            ({"path": "/dev/shm/x", "mapping": "0x1000"}, "mapping needs pid"),
            ({}, "parameter path is missing"),
        ]
        for texts, words in wrong:
            assert runner.refused("fallocate", length=HUGE, **texts).message == words
        assert runner.refused("free", pid=pid, unlink=1).message == "unlink=1 needs path"
        assert "is not for" in runner.refused("checksum", pid=pid, manifest="/x").message
    finally:
        ended(process)
    gone = runner.refused("clear", pid=pid)
    assert (type(gone), gone.errno) == (TargetError, errno.ESRCH)


def test_a_file_that_others_use_too(runner: Runner, root: None) -> None:
    process = running(MEMFD)
    try:
        with used(f"/proc/{process.pid}/fd/3", "maps") as other:
            error = runner.refused("clear", pid=process.pid)
            assert error.errno == errno.EBUSY
            assert f"({other.pid})" in error.message
            runner.run("clear", pid=process.pid, force=1)
        runner.run("clear", pid=process.pid)
    finally:
        ended(process)


def test_a_process_that_ends_or_unmaps_before_the_work(runner: Runner, root: None) -> None:
    """The worker has the file open by then, and does all of it."""
    process = running(MEMFD)
    plan = runner.prepare("verify", pid=process.pid, pattern="6d")
    ended(process)
    assert runner.work(plan).units_done == 1 << 20


def test_no_other_process_is_taken_for_it_at_a_resume(runner: Runner, root: None) -> None:
    first, second = running(MEMFD), running(MEMFD)
    try:
        (operation,) = runner.operations["clear"].meanings
        parameters = build_parameters(operation.parameters, {"pid": first.pid})
        plan = runner.prepare("clear", pid=first.pid)
        baseline = operation.baseline(parameters, plan.nodes)
        baseline.require_processes(parameters)
        whole = [(each.start, each.size) for each in plan.nodes]
        part = [type(plan.nodes[0])(start, size // 2, -1) for start, size in whole]
        plan.abort()
        error = runner.refused("clear", part, pid=first.pid)
        assert isinstance(error, NotSupported)
        assert "may have changed its mappings" in error.message
        began = dict(baseline.files) | {"pid": (first.pid, second.pid, 0)}
        with pytest.raises(TargetError, match="is not the process of"):
            type(baseline)(began, baseline.end, baseline.size, baseline.total).require_processes(parameters)
    finally:
        ended(first)
        ended(second)


def test_as_an_ordinary_user(runner: Runner, root: None) -> None:
    """Of own processes, files that are still open there or have a path; nothing of other users' processes."""
    mine, segment, others = running(MEMFD, NOBODY), running(SYSV, NOBODY), running(MEMFD)

    def body() -> list[object]:
        ours = runner.result(runner.prepare("checksum", pid=mine.pid))
        errors = [runner.refused("checksum", pid=each.pid) for each in (segment, others)]
        return [ours, *((each.errno, each.message) for each in errors)]

    try:
        expected = runner.result(runner.prepare("checksum", pid=mine.pid))
        ours, no_path, not_mine = as_nobody(body)
        assert ours == expected
        assert no_path[0] == errno.EPERM
        assert no_path[1].endswith("you need CAP_CHECKPOINT_RESTORE (or CAP_SYS_ADMIN)")
        assert not_mine[0] == errno.EACCES
    finally:
        for each in (mine, segment, others):
            ended(each)


def test_from_a_user_namespace_of_ones_own(runner: Runner, root: None) -> None:
    """Its root has every capability in its namespace, and may not even examine the own processes outside."""
    segment = running(SYSV, NOBODY)

    def body() -> list[object]:
        assert ctypes.CDLL(None).unshare(CLONE_NEWUSER) == 0
        error = runner.refused("checksum", pid=segment.pid)
        return [error.errno]

    try:
        assert as_nobody(body) == [errno.EACCES]
    finally:
        ended(segment)
