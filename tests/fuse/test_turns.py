"""The circle of turns."""

from __future__ import annotations

import contextlib
import functools
import os
from typing import TYPE_CHECKING, Any, cast

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from ktaskfs.fuse.operations import TreeOperations
from ktaskfs.fuse.turns import (
    HEARD_MAX,
    IN_ALL_MAX,
    OF_ONE_MAX,
    WRITES_IN_ALL_MAX,
    WRITES_OF_ONE_MAX,
    TooManyRequests,
    Turns,
)
from ktaskfs.quota import FEW_PART, Quota
from ktaskfs.vfs import ROOT_INO, Attributes, Caller, OpenTexts, StaticDirectory, TextFile, TooMuchText
from tests.support.poll import DEADLINE

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable


class Server:
    """Takes turns for requests, and notes in which order they begin."""

    def __init__(self) -> None:
        self.unread = False
        self.turns = Turns(lambda: self.unread)
        self.served: list[str] = []
        self.refused: list[str] = []

    async def request(self, uid: int, name: str, *, lookup: bool = False) -> None:
        try:
            await self.turns.take(uid, lookup=lookup)
        except TooManyRequests:
            self.refused.append(name)
        else:
            self.served.append(name)

    async def serve(self, *requests: Callable[[], Awaitable[None]]) -> None:
        """All of ``requests`` come in this order, and wait, before the first turn is given."""
        self.unread = True
        async with trio.open_nursery() as turns:
            async with trio.open_nursery() as nursery:
                for each in requests:
                    nursery.start_soon(each)
                    await wait_all_tasks_blocked()
                self.unread = False
                turns.start_soon(self.turns.run)
            turns.cancel_scope.cancel()


async def test_nobody_waits_while_there_is_no_other() -> None:
    server = Server()
    await server.request(1, "a")
    await server.request(2, "b")
    assert (server.served, server.turns.waiting) == (["a", "b"], 0)


async def test_users_take_turns_whatever_they_ask_for() -> None:
    server = Server()
    many = [functools.partial(server.request, 1, f"a{n}") for n in range(4)]
    await server.serve(*many, functools.partial(server.request, 2, "b0"), functools.partial(server.request, 2, "b1"))
    assert server.served == ["a0", "b0", "a1", "b1", "a2", "a3"]


async def test_lookups_of_a_user_go_first_and_keep_their_order() -> None:
    server = Server()
    await server.serve(
        functools.partial(server.request, 1, "read"),
        functools.partial(server.request, 1, "first", lookup=True),
        functools.partial(server.request, 1, "second", lookup=True),
    )
    assert server.served == ["first", "second", "read"]


async def test_a_user_with_too_many_is_refused_and_root_is_not() -> None:
    server = Server()
    numbers = range(OF_ONE_MAX + 5)
    await server.serve(*(functools.partial(server.request, 7, f"u{n}") for n in numbers))
    assert server.refused == [f"u{n}" for n in numbers[OF_ONE_MAX:]]
    root = Server()
    await root.serve(*(functools.partial(root.request, 0, f"r{n}") for n in numbers))
    assert (root.refused, len(root.served)) == ([], len(numbers))


async def test_the_user_who_has_most_makes_room_for_others() -> None:
    server = Server()
    others = IN_ALL_MAX - OF_ONE_MAX + 3
    await server.serve(
        *(functools.partial(server.request, 7, f"u{n}") for n in range(OF_ONE_MAX)),
        *(functools.partial(server.request, 100 + n, f"other{n}") for n in range(others)),
    )
    assert server.refused == [f"u{OF_ONE_MAX - n}" for n in (1, 2, 3)]
    assert len(server.served) == IN_ALL_MAX


async def test_root_waits_for_one_user_however_many_there_are() -> None:
    server = Server()
    many = [functools.partial(server.request, uid, f"u{uid}") for uid in range(1, 1001)]
    roots = [functools.partial(server.request, 0, f"root{n}") for n in range(3)]
    await server.serve(*many, *roots)
    assert server.served[:7] == ["root0", "u1", "root1", "u2", "root2", "u3", "u4"]
    assert server.served[-1] == "u1000"


async def test_the_users_do_not_wait_for_more_than_every_second_request_of_root() -> None:
    server = Server()
    roots = [functools.partial(server.request, 0, f"root{n}") for n in range(6)]
    users = [functools.partial(server.request, uid, f"{name}{uid}") for name in "ab" for uid in (1, 2)]
    await server.serve(*roots, *users)
    assert server.served == ["root0", "a1", "root1", "a2", "root2", "b1", "root3", "b2", "root4", "root5"]


def test_what_is_written_at_a_time_is_bounded_until_it_is_answered() -> None:
    turns = Turns(lambda: False)
    with contextlib.ExitStack() as others:
        with contextlib.ExitStack() as own:
            for _ in range(4):
                own.enter_context(turns.writing(7, WRITES_OF_ONE_MAX // 4))
            with pytest.raises(TooManyRequests):
                own.enter_context(turns.writing(7, 1))
            others.enter_context(turns.writing(8, WRITES_OF_ONE_MAX))
        with turns.writing(7, WRITES_OF_ONE_MAX):
            pass
        others.enter_context(turns.writing(0, WRITES_IN_ALL_MAX // 2))
        with pytest.raises(TooManyRequests):
            others.enter_context(turns.writing(9, WRITES_OF_ONE_MAX))
        others.enter_context(turns.writing(9, WRITES_IN_ALL_MAX // FEW_PART))


async def test_requests_that_cannot_be_read_do_not_stop_the_turns() -> None:
    """A session reads no more while it has as many under way as it may."""
    server = Server()
    server.unread = True
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.turns.run)
        with trio.fail_after(DEADLINE):
            for _ in range(2 * HEARD_MAX):
                await server.request(1, "a")
        nursery.cancel_scope.cancel()
    assert len(server.served) == 2 * HEARD_MAX


async def test_after_the_end_nobody_waits() -> None:
    server = Server()
    server.unread = True
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.turns.run)
        await wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    await server.request(1, "a")
    assert (server.served, server.unread) == (["a"], True)


async def test_a_request_that_was_cancelled_takes_no_turn() -> None:
    server = Server()
    server.unread = True
    with trio.move_on_after(1):
        await server.request(1, "gone")
    assert server.turns.waiting == 0
    await server.serve(functools.partial(server.request, 1, "a"))
    assert server.served == ["a"]


async def test_a_file_is_released_even_if_its_user_gets_no_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise it would count for this user until the end of the mount."""

    async def write(caller: Caller, text: str) -> None:
        raise AssertionError("the rest of the command never came")

    quota = Quota("bytes", each=1 << 20, total=1 << 20, refusal=TooMuchText)
    file = TextFile(2, Attributes(0o666), lambda caller: "", write, texts=OpenTexts(quota))
    turns = Turns(lambda: False)
    operations = TreeOperations(StaticDirectory(ROOT_INO, Attributes(0o555), {"control": file}), turns)
    opened = await operations.open(2, os.O_WRONLY, cast("Any", Caller(7, 7, os.getpid())))
    assert await operations.write(opened.fh, 0, b"x" * 512) == 512

    async def refuse(uid: int, *, lookup: bool = False) -> None:
        raise TooManyRequests("you have too many pending requests")

    monkeypatch.setattr(turns, "take", refuse)
    await operations.release(opened.fh)
    assert (operations.open_handles, quota.held(7)) == (0, 0)
