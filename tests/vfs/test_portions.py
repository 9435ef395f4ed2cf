"""Waking readers a few at a time."""

from __future__ import annotations

import trio

from ktaskfs.vfs import Portions
from ktaskfs.vfs.portions import PORTION
from tests.support.poll import DEADLINE


class Rounds(trio.abc.Instrument):
    """Counts how often the event loop has come round."""

    def __init__(self) -> None:
        self.count = 0

    def before_io_wait(self, timeout: float) -> None:
        self.count += 1


async def test_those_who_are_woken_together_come_in_portions_and_user_by_user() -> None:
    portions, rounds = Portions(), Rounds()
    came: list[tuple[int, int]] = []
    events = [(uid, trio.Event()) for uid in (1,) * 5 * PORTION + (2, 3)]

    async def wait(uid: int, event: trio.Event) -> None:
        await event.wait()
        came.append((uid, rounds.count))

    trio.lowlevel.add_instrument(rounds)
    async with trio.open_nursery() as nursery:
        for uid, event in events:
            nursery.start_soon(wait, uid, event)
        for uid, event in events:
            portions.wake(uid, event)
    trio.lowlevel.remove_instrument(rounds)
    together = [[uid for uid, number in came if number == each] for each in sorted({number for _, number in came})]
    assert [len(each) for each in together] == [*[PORTION] * 5, 2]
    assert {2, 3} <= set(together[0])  # they do not wait for all of the first user


async def test_it_wakes_again_after_all_were_woken() -> None:
    portions = Portions()
    for _ in range(3):
        event = trio.Event()
        portions.wake(1, event)
        with trio.fail_after(DEADLINE):
            await event.wait()
