"""Files whose writes start work: the descriptors that an opening keeps, and what every write gets of them."""

from __future__ import annotations

import os
import resource
from typing import TYPE_CHECKING

import pytest

from ktaskfs.control.callers import Callers
from ktaskfs.control.command_log import CommandLog
from ktaskfs.control.commands import CommandFile, Commands
from ktaskfs.control.limits import Limits
from ktaskfs.errors import InvalidValue, NotPermitted, TargetError
from ktaskfs.vfs import Attributes, Caller
from tests.tasks.house import until

if TYPE_CHECKING:
    from ktaskfs.host.credentials import CallerProcess

ME = Caller(uid=os.geteuid(), gid=os.getegid(), pid=os.getpid())


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


class Recorder:
    """A command file, and the commands that it ran."""

    def __init__(self) -> None:
        self.told: list[tuple[int, str, str]] = []
        self.log = CommandLog()
        self.file = CommandFile(
            2,
            Attributes(0o660, 0, 0, 0),
            Commands("f", lambda caller: "usage\n", self.run),
            log=self.log,
            limits=Limits(),
            callers=Callers(),
        )

    async def run(self, caller: CallerProcess, text: str) -> str | None:
        cwd = os.readlink(f"/proc/self/fd/{caller.cwd}")
        caller.close()
        if text == "bad":
            raise InvalidValue("no")
        self.told.append((caller.identity.pid, cwd, text))
        return f"{text} done\n"


async def test_reading_shows_the_usage_and_keeps_nothing() -> None:
    before = open_files()
    opened = await Recorder().file.open(ME, os.O_RDONLY)
    assert (await opened.read(0, 100), open_files()) == (b"usage\n", before)
    opened.release()


async def test_each_write_gets_the_opener_and_the_opening_lets_go_of_it() -> None:
    before = open_files()
    commands = Recorder()
    opened = await commands.file.open(ME, os.O_RDWR)
    assert open_files() == before + 2
    for text in ("one", "two"):
        await opened.write(0, text.encode())
    assert commands.told == [(os.getpid(), os.getcwd(), "one"), (os.getpid(), os.getcwd(), "two")]
    assert await opened.read(0, 100) == b"one done\ntwo done\n"
    with pytest.raises(InvalidValue):
        await opened.write(0, b"bad")
    assert commands.log.status(ME) == "f: EINVAL: no\n"
    await until(lambda: open_files() == before + 2, "the writes' descriptors are closed")
    opened.release()
    await until(lambda: open_files() == before, "the opening's descriptors are closed")


@pytest.mark.parametrize(
    "caller", [Caller(uid=0, gid=0, pid=0), Caller(uid=4242, gid=0, pid=os.getpid()), Caller(uid=0, gid=0, pid=2**22)]
)
async def test_whoever_cannot_be_identified_opens_nothing(caller: Caller) -> None:
    before = open_files()
    commands = Recorder()
    with pytest.raises(NotPermitted):
        await commands.file.open(caller, os.O_WRONLY)
    assert commands.log.status(caller).startswith("f: EPERM: ")
    assert open_files() == before


@pytest.mark.parametrize("room", [0, 1])
async def test_without_a_descriptor_left_a_write_is_refused_and_loses_none(room: int) -> None:
    commands = Recorder()
    opened = await commands.file.open(ME, os.O_WRONLY)
    before = open_files()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    probe = [os.dup(0) for _ in range(20)]  # fills the gaps below the limit
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(probe) + 1 + room, hard))
    try:
        with pytest.raises(TargetError, match="Too many open files"):
            await opened.write(0, b"one")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for fd in probe:
            os.close(fd)
    assert open_files() == before
    assert commands.told == []
    opened.release()
