"""The figures of ``metrics`` at one moment, as values."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ktaskfs.control.durations import Durations
    from ktaskfs.host.hugepages import Pool


class Facts(NamedTuple):
    """Everything in ``metrics``, except the figures of every process (CPU time, memory, descriptors).

    tasks:   by operation and state, now.
    started: by operation, since the mount.
    refused: by operation, starts of work since the mount that failed, with or without an error for the writer.
    ended:   by operation and outcome, since the mount.
    units:   by operation and unit, done by workers seen since the mount.
    durations: by operation, of tasks that became done since the mount: from the start of the work to its end.
    open_handles: open files and directories of the mount.
    lag:     delay of the event loop in seconds.
    """

    tasks: Mapping[tuple[str, ...], int]
    started: Mapping[tuple[str, ...], int]
    refused: Mapping[tuple[str, ...], int]
    ended: Mapping[tuple[str, ...], int]
    units: Mapping[tuple[str, ...], int]
    durations: Mapping[str, Durations]
    pools: tuple[Pool, ...]
    open_handles: int
    lag: float
