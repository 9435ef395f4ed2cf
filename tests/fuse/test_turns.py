"""The circle of turns."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import trio
from trio.testing import wait_all_tasks_blocked

from ktaskfs.fuse.turns import BYTES_OF_ONE_MAX, HEARD_MAX, IN_ALL_MAX, OF_ONE_MAX, TooManyRequests, Turns

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable


class Server:
    """Takes turns for requests, and notes in which order they begin."""

    def __init__(self) -> None:
        self.unread = False
        self.turns = Turns(lambda: self.unread)
        self.served: list[str] = []
        self.refused: list[str] = []

    async def request(self, uid: int, name: str, *, lookup: bool = False, size: int = 0) -> None:
        try:
            await self.turns.take(uid, lookup=lookup, size=size)
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


async def test_what_waits_to_be_written_is_bounded() -> None:
    server = Server()
    size = BYTES_OF_ONE_MAX // 4
    await server.serve(*(functools.partial(server.request, 7, f"w{n}", size=size) for n in range(6)))
    assert (server.served, server.refused) == ([f"w{n}" for n in range(4)], ["w4", "w5"])
    server = Server()
    await server.serve(*(functools.partial(server.request, 0, f"w{n}", size=size) for n in range(6)))
    assert server.refused == []


async def test_requests_that_cannot_be_read_do_not_stop_the_turns() -> None:
    """A session reads no more while it has as many under way as it may."""
    server = Server()
    server.unread = True
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.turns.run)
        with trio.fail_after(5):
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

