"""What a task is to do, and what its runs until now came to."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ktaskfs.operations.base.operation import Operation
    from ktaskfs.operations.base.resume import Baseline
    from ktaskfs.progress import Snapshot
    from ktaskfs.span import Node

ALL_CAPABILITIES: Final = (1 << 64) - 1
"""Those of a task that nobody with fewer has defined."""


@dataclass(frozen=True, slots=True)
class History:
    """One value, replaced whole: to take back a start that failed, assign the earlier one.

    operation: None while an empty task (mkdir) has no operation.
    texts:     the given parameters, as canonical text.
    remaining: the ranges that a resumed task was started with, None for a first run.
    base:      units that earlier runs had done.
    baseline:  what those units rest on; None before the first start.
    planned:   units of this run, as its worker announced them before it began.
    final:     the last snapshot of the worker, once it has ended.
    result:    the text of ``result``, as the bytes that every opening of it shares.
    rights:    the capabilities that everybody had who defined the task, a mask of bits.
    """

    operation: Operation[Any] | None = None
    texts: Mapping[str, str] = field(default_factory=dict)
    remaining: tuple[Node, ...] | None = None
    base: int = 0
    baseline: Baseline | None = None
    planned: int = 0
    final: Snapshot | None = None
    result: bytes = b""
    rights: int = ALL_CAPABILITIES
