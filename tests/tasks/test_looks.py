"""Scans for the holders of huge pages: shared, limited, given up. The scanning process is a pipe here."""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import pytest
import trio
import trio.testing

from ktaskfs.errors import KtaskfsError
from ktaskfs.host.credentials import read_caller
from ktaskfs.tasks.launcher import ForkedWorker
from ktaskfs.tasks.looks import IN_ALL_MAX, MAX_AGE, OF_ONE_MAX, TIMEOUT, Looks, TooManyLooks
from ktaskfs.tasks.tunables import Settings
from ktaskfs.worker import protocol

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from ktaskfs.host.credentials import CallerProcess

FOUND = protocol.Found("a table\n", "{}\n")


def of_one_that_ended() -> int:
    """A pidfd."""
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    pidfd = os.pidfd_open(pid)
    os.waitpid(pid, 0)
    return pidfd


@dataclass
class Launcher:
    """Answers each request with ``answer``, or keeps the pipe open if that is None."""

    answer: bytes | None = protocol.encode(FOUND)
    forked: int = 0
    kept: list[int] = field(default_factory=list)

    async def fork(self, request: protocol.ForkRequest, fds: Sequence[int]) -> ForkedWorker:
        assert isinstance(request, protocol.LookRequest)
        self.forked += 1
        pidfd = of_one_that_ended()
        if self.answer is None:
            self.kept.append(os.dup(fds[0]))
        else:
            os.write(fds[0], self.answer)
        return ForkedWorker(0, pidfd, self.forked)

    async def exit_status(self, ticket: int) -> int | None:
        return None


@dataclass
class Table:
    settings: Settings


@dataclass
class Context:
    launcher: Launcher
    nursery: trio.Nursery
    table: Table


def caller(**changes: Any) -> CallerProcess:
    found = read_caller(os.getpid(), os.geteuid(), os.getegid())
    return found._replace(identity=found.identity._replace(**changes))


@pytest.fixture
def launcher() -> Launcher:
    return Launcher()


@pytest.fixture
async def looks(launcher: Launcher, nursery: trio.Nursery) -> AsyncIterator[Looks]:
    yield Looks(cast("Any", Context(launcher, nursery, Table(Settings({})))))
    for each in launcher.kept:
        os.close(each)


def soon() -> float:
    return trio.current_time() + 0.9


async def test_all_with_the_same_rights_share_a_look_for_a_second(
    looks: Looks, launcher: Launcher, autojump_clock: trio.testing.MockClock
) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        assert await looks.find(caller(), soon()) == FOUND
    assert launcher.forked == 1
    await looks.find(caller(groups=(4711,)), soon())
    assert launcher.forked == 2
    await trio.sleep(2 * MAX_AGE)
    await looks.find(caller(), soon())
    assert launcher.forked == 3
    await trio.testing.wait_all_tasks_blocked()
    assert len(os.listdir("/proc/self/fd")) == before


async def test_a_look_takes_no_descriptor_beside_those_of_its_caller(
    looks: Looks, autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If none was left, the look never ended: until the end of the daemon nobody with these rights had another."""

    def dup(fd: int) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(os, "dup", dup)
    assert await looks.find(caller(), soon()) == FOUND


async def test_a_user_has_few_looks_and_leaves_some_to_others(
    looks: Looks, launcher: Launcher, autojump_clock: trio.testing.MockClock
) -> None:
    for group in range(OF_ONE_MAX):
        await looks.find(caller(uid=1000, groups=(group,)), soon())
    with pytest.raises(TooManyLooks):
        await looks.find(caller(uid=1000), soon())
    refused = 0
    for uid in range(1001, 1001 + IN_ALL_MAX):
        try:
            await looks.find(caller(uid=uid), soon())
        except TooManyLooks:
            refused += 1
    assert refused == OF_ONE_MAX + 1
    await looks.find(caller(uid=0), soon())
    await trio.sleep(2 * MAX_AGE)
    await looks.find(caller(uid=1000, groups=(4711,)), soon())


async def test_a_look_that_takes_long_is_asked_for_again_and_given_up_at_last(
    looks: Looks, launcher: Launcher, autojump_clock: trio.testing.MockClock
) -> None:
    launcher.answer = None
    for _ in range(2):
        with pytest.raises(KtaskfsError, match="longer than a second") as refusal:
            await looks.find(caller(), soon())
        assert refusal.value.errno == errno.ETIMEDOUT
    assert launcher.forked == 1
    with pytest.raises(KtaskfsError, match=f"longer than {TIMEOUT:.0f} s"):
        await looks.find(caller(), trio.current_time() + 2 * TIMEOUT)


@pytest.mark.parametrize(
    ("answer", "number", "words"),
    [
        (protocol.encode(protocol.WorkerRefused(errno.EACCES, "your group")), errno.EACCES, "your group"),
        (b"", errno.EIO, "died"),
        (b"[1", errno.EIO, "sent an invalid answer"),
        (b'["Found", {"table": 1, "json": ""}]', errno.EIO, "sent an invalid answer"),
        (protocol.encode(protocol.Ready(0, {}, {})), errno.EIO, "process sent an invalid answer"),
    ],
)
async def test_what_is_no_find_is_an_error(
    looks: Looks, launcher: Launcher, autojump_clock: trio.testing.MockClock, answer: bytes, number: int, words: str
) -> None:
    launcher.answer = answer
    with pytest.raises(KtaskfsError, match=words) as refusal:
        await looks.find(caller(), soon())
    assert refusal.value.errno == number
