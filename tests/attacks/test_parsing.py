"""Specs that are slow to parse: nobody else may wait for them."""

from __future__ import annotations

import contextlib
import json
from typing import TYPE_CHECKING

import pytest
import trio

from ktaskfs.errors import KtaskfsError, TooBig
from ktaskfs.tasks.spec import Spec, parse_spec
from ktaskfs.tasks.spec_reader import SpecReader
from ktaskfs.tasks.tunables import Settings
from ktaskfs.vfs import COMMAND_MAX
from tests.support.traced import Lines
from tests.tasks.house import OPERATIONS

if TYPE_CHECKING:
    from tests.support.daemon import Mount

STRETCH = 30_000
"""Lines of Python in one step of the event loop: 2 ms. What C code does in one line is bounded by COMMAND_MAX."""
USER = 1000


def filled(line: str) -> str:
    """``line`` repeated until a write is full."""
    return line * (COMMAND_MAX // len(line.encode()))


SLOW = {
    "one long word": filled("x"),
    "a long path": "clear path=" + filled("/a")[:-16],
    "quotes": filled("''"),
    "words in quotes": filled("'a' "),
    "as many quotes as may be": "clear path=" + "''" * 4096,
    "escapes": filled("\\a"),
    "no end": "'" + filled("a\\")[:-2],
    "words": filled("a=1 "),
    "equal signs": filled("= "),
    "nodes": "clear path=/x length=1 nodes=" + filled("0-1023,")[:-64] + "0",
    "blanks": "{" + filled(" ")[:-4] + "}",
    "members": "{" + ",".join(f'"k{n}":1' for n in range(6000)) + "}",
    "array": '{"nodes":[' + filled("1,")[:-64] + "1]}",
    "depth": '{"a":' + filled("[")[:-10],
    "digits": '{"a":' + filled("1")[:-10] + "}",
    "unicode": json.dumps({"op": "clear", "path": "é" * 10_000}),
    "lines": filled("x\n"),
    "objects": filled("{}\n"),
    "a list of objects": "[" + filled("{},")[:-8] + "{}]",
    "blank lines": "x" + filled("\n")[:-2] + "x",
}


class _Longest(trio.abc.Instrument):
    """The most lines of Python that one step runs."""

    def __init__(self) -> None:
        self.most = 0
        self._lines = Lines()

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self._lines.count = 0
        self._lines.start()

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        self._lines.stop()
        self.most = max(self.most, self._lines.count)


@pytest.mark.parametrize("text", SLOW.values(), ids=SLOW.keys())
async def test_no_spec_holds_the_event_loop(text: str) -> None:
    assert len(text.encode()) <= COMMAND_MAX
    reader = SpecReader(OPERATIONS, Settings({"max_tasks": 65536}))

    async def read() -> None:
        with contextlib.suppress(KtaskfsError):
            await reader.read(USER, text)

    longest = _Longest()
    trio.lowlevel.add_instrument(longest)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
    finally:
        trio.lowlevel.remove_instrument(longest)
    assert 0 < longest.most < STRETCH


async def test_many_writers_of_one_user_are_read_one_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    reader = SpecReader(OPERATIONS, Settings({}))
    read: list[str] = []

    def parse(line: str, operations: object) -> Spec:
        read.append(line.split("name=")[1])
        return parse_spec(line, OPERATIONS)

    monkeypatch.setattr("ktaskfs.tasks.spec_reader.parse_spec", parse)
    async with trio.open_nursery() as nursery:
        for writer in "abc":
            text = "\n".join(f"clear path=/x name={writer}" for _ in range(20))
            nursery.start_soon(reader.read, USER, text)
        nursery.start_soon(reader.read, USER + 1, "clear path=/x name=other")
    assert read.index("other") < 3  # while the first writer's lines are read
    own = [each for each in read if each != "other"]
    assert len(own) == 60
    assert [own[0], own[20], own[40]] == sorted({*own}, key=own.index)  # no line of another in between


async def test_more_lines_than_tasks_never_succeed() -> None:
    reader = SpecReader(OPERATIONS, Settings({"max_tasks": 3}))
    line = "clear path=/x length=1\n"
    assert len(await reader.read(USER, line * 3 + "\n \n")) == 3
    with pytest.raises(TooBig, match=r"more specs .* than the 3 unfinished tasks"):
        await reader.read(USER, line * 4)
    assert len(await reader.read(USER, line * 3 + line.replace("\n", " queue=1\n") * 256)) == 259
    with pytest.raises(TooBig, match=r"3 unfinished tasks .* and 256 queued ones"):
        await reader.read(USER, line * 3 + line.replace("\n", " queue=1\n") * 257)


def test_the_mount_says_so(mounted: Mount) -> None:
    line = "clear path=/nowhere length=1\n"
    assert mounted.write_once("tasks/control", line * 65) == (1, "E2BIG")
    assert "more specs in one write than the 64 unfinished tasks" in mounted.read("info/last_cmd_status")
    assert mounted.write_once("tasks/control", f"clear length=1 path=/{'x' * 4095}") == (1, "ENAMETOOLONG")
    assert mounted.read("info/last_cmd_status").startswith("tasks/control: ENAMETOOLONG: path: the path has 4096 bytes")
