"""The identity of a caller, from /proc."""

from __future__ import annotations

import contextlib
import os
import resource
from pathlib import Path

import pytest

from ktaskfs.errors import NotPermitted, TargetError
from ktaskfs.host import syscalls
from ktaskfs.host.credentials import GROUPS_MAX, Identity, parse_start_time, read_caller, start_time
from tests.support.as_caller import NOBODY
from tests.support.forked import run_forked
from tests.support.processes import status_of


def test_start_time_of_a_name_that_looks_like_fields() -> None:
    fields = " ".join(str(number) for number in range(3, 53))
    for comm in ("sh", "a b", "((", ") S 1 (x", "a\n) R"):
        assert parse_start_time(f"42 ({comm}) {fields}\n".encode()) == 22


def test_start_time_of_a_process_with_such_a_name() -> None:
    def named() -> list[int | None]:
        syscalls.set_thread_name(") S 1 2 (\n 3")
        return [start_time(os.getpid())]

    (ticks,) = run_forked(named)
    uptime = float(Path("/proc/uptime").read_text().split()[0]) * os.sysconf("SC_CLK_TCK")
    assert uptime - 60 * os.sysconf("SC_CLK_TCK") < ticks <= uptime
    assert start_time(2**22 + 1) is None


def test_own_identity_is_complete() -> None:
    caller = read_caller(os.getpid(), os.geteuid(), os.getegid())
    status = status_of("self")
    identity = caller.identity
    assert list(identity.groups) == os.getgroups()
    assert [f"{identity.effective:016x}"] == status["CapEff"]
    assert [f"{identity.bounding:016x}"] == status["CapBnd"]
    assert identity.umask == int(status["Umask"][0], 8)
    assert identity.start_time == start_time(os.getpid())
    assert os.path.sameopenfile(caller.cwd, os.open(".", os.O_PATH))
    assert Identity.from_fields(identity.to_fields()) == identity
    caller.close()


def test_a_pid_of_another_user_is_not_trusted() -> None:
    for uid, gid in ((os.geteuid() + 1, os.getegid()), (os.geteuid(), os.getegid() + 1)):
        with pytest.raises(NotPermitted, match="is not the writer"):
            read_caller(os.getpid(), uid, gid)


def test_a_pid_without_a_process_is_refused() -> None:
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    with pytest.raises(NotPermitted, match="cannot be seen"):
        read_caller(pid, 0, 0)


@pytest.mark.usefixtures("root")
def test_a_process_in_very_many_groups_is_refused() -> None:
    def look() -> list[int]:
        os.setgroups([NOBODY] * GROUPS_MAX)
        caller = read_caller(os.getpid(), os.geteuid(), os.getegid())
        os.setgroups([NOBODY] * (GROUPS_MAX + 1))
        with pytest.raises(NotPermitted, match="in more than 1024 groups"):
            read_caller(os.getpid(), os.geteuid(), os.getegid())
        return [len(caller.identity.groups)]

    assert run_forked(look) == [GROUPS_MAX]


def test_having_no_descriptor_left_is_not_the_callers_fault() -> None:
    def look() -> list[str]:
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(map(int, os.listdir("/proc/self/fd"))) + 2, most))
        last = 0
        with contextlib.suppress(OSError):
            while True:
                last = os.dup(0)
        os.close(last)  # for the listings, and the first thing that is looked at
        before = os.listdir("/proc/self/fd")
        with pytest.raises(TargetError, match="Too many open files") as error:
            read_caller(os.getpid(), os.geteuid(), os.getegid())
        assert os.listdir("/proc/self/fd") == before
        return [error.value.errname]

    assert run_forked(look) == ["EMFILE"]


def test_refusals_leave_no_descriptor_open() -> None:
    before = os.listdir("/proc/self/fd")
    with pytest.raises(NotPermitted):
        read_caller(os.getpid(), 12345, 12345)
    assert os.listdir("/proc/self/fd") == before
