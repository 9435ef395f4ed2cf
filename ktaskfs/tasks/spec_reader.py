"""Reads the specs of a write without holding the event loop for long."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

import trio

from ktaskfs.errors import TooBig
from ktaskfs.tasks.spec import Spec, parse_spec

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ktaskfs.operations.base.operation import Operation
    from ktaskfs.tasks.tunables import Settings


class SpecReader:
    """Parses line by line, one user's write at a time. The others' requests run between two lines."""

    def __init__(self, operations: Mapping[str, Operation[Any]], settings: Settings) -> None:
        self._operations = operations
        self._settings = settings
        self._locks: WeakValueDictionary[int, trio.Lock] = WeakValueDictionary()
        """By uid, while a write of that user is parsed or waits."""

    async def read(self, uid: int, text: str) -> list[Spec]:
        """The specs in ``text``, one a line; empty lines do not count.

        Raises SpecError, and TooBig for more lines than a user may have unfinished tasks: such a write never succeeds.
        """
        lines = [line for line in text.split("\n") if line.strip(" \t\r")]
        limit = self._settings["max_tasks"]
        if len(lines) > limit:
            raise TooBig(
                f"{len(lines)} specs in one write, and a user may have {limit} unfinished tasks (debug/ktask_max_tasks)"
            )
        async with self._lock(uid):
            specs = []
            for line in lines:
                await trio.lowlevel.checkpoint()
                specs.append(parse_spec(line, self._operations))
        return specs

    async def read_one(self, uid: int, text: str) -> Spec:
        """The spec that is the whole of ``text``; raises SpecError."""
        async with self._lock(uid):
            await trio.lowlevel.checkpoint()
            return parse_spec(text, self._operations)

    def _lock(self, uid: int) -> trio.Lock:
        return self._locks.setdefault(uid, trio.Lock())
