"""Reads the specs of a write without holding the event loop for long."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final
from weakref import WeakValueDictionary

import trio

from ktaskfs.errors import TooBig
from ktaskfs.tasks.spec import Spec, parse_spec, split_specs

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ktaskfs.operations.base.operation import SpecWord
    from ktaskfs.tasks.tunables import Settings

SPLIT_AT_ONCE: Final = 64
"""Specs to split without a pause; each takes up to 30 us, JSON objects the most."""


class SpecReader:
    """Parses line by line, one user's write at a time. The others' requests run between two lines."""

    def __init__(self, operations: Mapping[str, SpecWord], settings: Settings) -> None:
        self._operations = operations
        self._settings = settings
        self._locks: WeakValueDictionary[int, trio.Lock] = WeakValueDictionary()
        """By uid, while that user's write is parsed or waits."""

    async def read(self, uid: int, text: str) -> list[Spec]:
        """The specs in ``text``, as ``split_specs`` finds them.

        Raises SpecError, and TooBig for more specs than a user may have unfinished tasks, plus queued ones with
        queue=1: such a write never succeeds.
        """
        limit, queued = self._settings["max_tasks"], self._settings["max_queued"]
        async with self._lock(uid):
            texts: list[str] = []
            for each in split_specs(text):
                texts.append(each)
                if len(texts) > limit + queued:
                    raise TooBig(f"{_more_than(limit)} and {queued} queued ones (debug/ktask_max_queued)")
                if len(texts) % SPLIT_AT_ONCE == 0:
                    await trio.lowlevel.checkpoint()
            specs = []
            for each in texts:
                await trio.lowlevel.checkpoint()
                specs.append(parse_spec(each, self._operations))
        if sum(not spec.parameters.queue for spec in specs) > limit:
            raise TooBig(_more_than(limit))
        return specs

    async def read_one(self, uid: int, text: str) -> Spec:
        """The only spec in ``text``; raises SpecError."""
        async with self._lock(uid):
            await trio.lowlevel.checkpoint()
            return parse_spec(text, self._operations)

    def _lock(self, uid: int) -> trio.Lock:
        return self._locks.setdefault(uid, trio.Lock())


def _more_than(limit: int) -> str:
    return f"more specs in one write than the {limit} unfinished tasks of a user (debug/ktask_max_tasks)"
