"""Examination of callers: a caller that hangs delays only its user."""

from __future__ import annotations

import errno
import os
import threading
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

from ktaskfs.control import callers
from ktaskfs.control.callers import CLOSING_MAX, IN_ALL_MAX, OF_ONE_MAX, OF_ROOT_MAX, Callers, NoLook
from ktaskfs.errors import NotPermitted
from ktaskfs.host.credentials import close_all, read_caller
from ktaskfs.user_threads import NoThread
from ktaskfs.vfs import Caller
from tests.support.poll import DEADLINE
from tests.tasks.house import until

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from trio.testing import MockClock

    from ktaskfs.host.credentials import CallerProcess

HANGS = 7
"""The uid of a user whose working directory does not answer."""


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


class Looks:
    """Examines this process; for some users it hangs until ``answer`` is set."""

    def __init__(self, *hanging: int) -> None:
        self.answer = threading.Event()
        self.begun = 0
        self._hanging = hanging
        self.callers = Callers(self._look)

    def _look(self, pid: int, uid: int, gid: int) -> CallerProcess:
        self.begun += 1
        if uid in self._hanging:
            self.answer.wait(DEADLINE)
        return read_caller(os.getpid(), os.geteuid(), os.getegid())

    async def find(self, uid: int) -> None:
        (await self.callers.find(Caller(uid, uid, os.getpid()))).close()

    async def find_late(self, uid: int) -> None:
        with pytest.raises(NoLook) as refused:
            await self.find(uid)
        assert refused.value.errno == errno.ETIMEDOUT


@pytest.fixture
def looks() -> Iterator[Looks]:
    made = Looks(HANGS)
    yield made
    made.answer.set()


@pytest.fixture
def clock(mock_clock: MockClock) -> MockClock:
    """The clock of the test goes as ever, but can jump."""
    mock_clock.rate = 1
    return mock_clock


async def lose_patience(clock: MockClock) -> None:
    """All requests that now wait give up, after each look for which there is a place has begun."""
    await trio.testing.wait_all_tasks_blocked()
    clock.jump(DEADLINE)


async def test_the_caller_is_found() -> None:
    found = await Callers().find(Caller(os.geteuid(), os.getegid(), os.getpid()))
    assert found.identity.pid == os.getpid()
    found.close()
    with pytest.raises(NotPermitted, match="pid namespace"):
        await Callers().find(Caller(1, 1, 0))
    effective, permitted = await Callers().capabilities(Caller(os.geteuid(), os.getegid(), os.getpid()))
    assert (effective, permitted) == (found.identity.effective, found.identity.permitted)
    assert await Callers().capabilities(Caller(12345, 12345, os.getpid())) == (0, 0)


async def test_a_look_that_hangs_is_given_up_and_holds_its_user_only(looks: Looks, clock: MockClock) -> None:
    before = open_files()
    async with trio.open_nursery() as nursery:
        for _ in range(OF_ONE_MAX + 3):
            nursery.start_soon(looks.find_late, HANGS)
        for uid in (0, 8, 9):
            await looks.find(uid)
        await lose_patience(clock)
    all_places = OF_ONE_MAX + 3  # those of the user who hangs, and the three others
    await until(lambda: looks.begun == all_places, "no place is left")
    looks.answer.set()
    await looks.find(HANGS)
    assert looks.begun == OF_ONE_MAX + 4
    await until(lambda: open_files() <= before, "what came late is closed")


async def test_without_a_thread_the_request_is_refused_and_the_daemon_goes_on(
    looks: Looks, request: pytest.FixtureRequest
) -> None:
    before = open_files()
    kept = await looks.callers.find(Caller(8, 8, os.getpid()))
    request.getfixturevalue("no_threads")
    with pytest.raises(NoThread):
        await looks.find(8)
    kept.close()
    await until(lambda: open_files() == before, "all descriptors are closed")


async def test_requests_that_gave_up_leave_nothing_behind(looks: Looks, clock: MockClock) -> None:
    async def find_late(times: int) -> None:
        async with trio.open_nursery() as nursery:
            for _ in range(times):
                nursery.start_soon(looks.find_late, HANGS)
            await lose_patience(clock)

    await find_late(OF_ONE_MAX)
    before = trio.lowlevel.current_statistics().tasks_living
    await find_late(9)
    await trio.testing.wait_all_tasks_blocked()
    assert trio.lowlevel.current_statistics().tasks_living == before
    looks.answer.set()


async def test_users_who_hang_leave_root_its_looks(clock: MockClock) -> None:
    users, all_places = range(1, IN_ALL_MAX + 10), IN_ALL_MAX + OF_ROOT_MAX
    looks = Looks(*users)
    try:
        async with trio.open_nursery() as nursery:
            for uid in users:
                nursery.start_soon(looks.find_late, uid)
            for _ in range(OF_ROOT_MAX):
                await looks.find(0)
            await lose_patience(clock)
        await until(lambda: looks.begun == all_places, "no place is left to those who hang")
    finally:
        looks.answer.set()


async def test_many_opens_at_once_refuse_no_command(looks: Looks, clock: MockClock) -> None:
    """Those who wait for a look do not count as closes that hang."""
    kept = await looks.callers.find(Caller(0, 0, os.getpid()))
    kept = kept._replace(identity=kept.identity._replace(uid=HANGS))
    async with trio.open_nursery() as nursery:
        for _ in range(OF_ONE_MAX + CLOSING_MAX + 1):
            nursery.start_soon(looks.find_late, HANGS)
        await trio.testing.wait_all_tasks_blocked()
        looks.callers.copy(kept).close()
        await lose_patience(clock)
    kept.close()


async def test_a_close_that_hangs_holds_its_user_only(monkeypatch: pytest.MonkeyPatch, clock: MockClock) -> None:
    """Like that of a filesystem which the user has detached: the last one unmounts it."""
    answer = threading.Event()
    hanging: set[int] = set()

    def close(fds: Sequence[int]) -> None:
        if hanging.intersection(fds):
            answer.wait(DEADLINE)
        close_all(fds)

    monkeypatch.setattr(callers, "close_all", close)
    looks, before = Looks(), open_files()
    kept = await looks.callers.find(Caller(HANGS, HANGS, os.getpid()))
    kept = kept._replace(identity=kept.identity._replace(uid=HANGS))
    copies = [looks.callers.copy(kept) for _ in range(OF_ONE_MAX + CLOSING_MAX + 1)]
    hanging = {each.root for each in copies}
    try:
        for each in copies:
            each.close()
        for uid in (0, 8, 9):
            await looks.find(uid)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(looks.find_late, HANGS)
            await lose_patience(clock)
        with pytest.raises(NoLook, match="hang"):
            looks.callers.copy(kept)
    finally:
        answer.set()
    kept.close()
    await until(lambda: open_files() <= before, "all descriptors are closed")
