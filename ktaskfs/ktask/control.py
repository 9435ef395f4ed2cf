"""The client's description of a task: the chunk function, the limits, and the monitor."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from functools import partial
from math import isfinite
from operator import add, index
from typing import TYPE_CHECKING, Any, Final, Literal

from ktaskfs.ktask.arithmetic import DEFAULT_CPU_PERCENT, DEFAULT_LOAD_BAL_SHIFT, batch_size
from ktaskfs.ktask.budget import HelperBudget
from ktaskfs.ktask.clock import Clock, SystemClock
from ktaskfs.ktask.machine import LinuxMachine, Machine
from ktaskfs.ktask.monitor import Monitor

if TYPE_CHECKING:
    from collections.abc import Callable


iter_range: Final = add
"""``iter_range(position, size)`` is the position ``size`` units further, if positions are numbers or other objects that
can be added (``ktask_iter_range``)."""

_MAKES_AN_OBJECT: Final = 0x20 | 0x80 | 0x200
"""CO_GENERATOR, CO_COROUTINE and CO_ASYNC_GENERATOR of ``inspect``, which takes long to import."""


def checked_rate(rate: float | None) -> float | None:
    """``rate`` as a float, or None; raises ValueError unless it is above 0 and finite, TypeError if it is no number."""
    if rate is None:
        return None
    try:
        valid = isfinite(rate) and float(rate) > 0  # isfinite first: it refuses text, which float accepts
    except OverflowError:
        valid = False
    if not valid:
        raise ValueError(f"rate is {rate}")
    return float(rate)


def _only_makes_an_object(function: Any) -> bool:
    """Whether a call makes a generator or a coroutine: nothing would be done, without an error."""
    while isinstance(function, partial):
        function = function.func
    codes = (getattr(each, "__code__", None) for each in (function, type(function).__call__))
    return any(getattr(code, "co_flags", 0) & _MAKES_AN_OBJECT for code in codes)


@dataclass(frozen=True, slots=True)
class Control:
    """Everything about a task except its nodes (``struct ktask_ctl``, RFC v1 to v4). Sizes are in the task's units.

    Raises ValueError for values that contradict each other or are outside the bounds stated at the field, and TypeError
    for values of another type.
    """

    thread_func: Callable[[Any, Any], object]
    """Does the chunk from one position up to another; called without any lock; raises if it fails (kc_thread_func)."""
    min_chunk_size: int = field(kw_only=True)
    """The smallest work worth a call, at least 1 (kc_min_chunk_size); chunks are multiples of it, rounded up to
    ``align``."""
    max_chunk_size: int | None = field(default=None, kw_only=True)
    """Not in the kernel: the maximum work in one chunk; None: a single thread gets a whole node at once, as in the
    kernel."""
    max_threads: int = field(default=0, kw_only=True)
    """The maximum threads, including the first; 0: the number of CPUs, or, if they are ``fixed``, the framework's
    default (kc_max_threads, v3)."""
    threads: Literal["found", "fixed"] = field(default="found", kw_only=True)
    """``fixed``: the number from the kernel's arithmetic. ``found``, not in the kernel: a long task begins with that
    number, and measures how many help."""
    align: int = field(default=1, kw_only=True)
    """Chunks begin and end at multiples of this many units from their node's start (padata_mt_job.align)."""
    iter_func: Callable[[Any, int], Any] = field(default=iter_range, kw_only=True)
    """Returns the position after a number of units, as a new object (kc_iter_func).

    Called for every chunk, the last one too, so the end of a node must be a position. Called under the scheduler's
    lock: keep it short, and call no control of the job.
    """
    undo_func: Callable[[Any, Any], object] | None = field(default=None, kw_only=True)
    """Undoes a finished range after a failure or cancel; must not fail (kc_undo_func, v4)."""
    undo_failed: bool = field(default=False, kw_only=True)
    """Not in the kernel: ``undo_func`` can also undo a chunk that failed midway, and gets each in a separate call."""
    nice: int = field(default=19, kw_only=True)
    """The nice value of helper threads, -20 to 19 (MAX_NICE in v4)."""
    cpu_percent: int = field(default=DEFAULT_CPU_PERCENT, kw_only=True)
    """Percent of all CPUs, and of each NUMA node's CPUs, that this task's helpers may take; 0 to 100 (since v2)."""
    budget: HelperBudget | None = field(default=None, kw_only=True)
    """A limit for the helpers of several tasks together, instead of ``cpu_percent`` (``ktask_rlim``, since v2)."""
    load_bal_shift: int = field(default=DEFAULT_LOAD_BAL_SHIFT, kw_only=True)
    """Chunks for each thread, as a power of two (KTASK_LOAD_BAL_SHIFT)."""
    fixed_chunks: bool = field(default=False, kw_only=True)
    """Keep all chunks of one size, as the kernel does; otherwise the last ones shrink."""
    rate: float | None = field(default=None, kw_only=True)
    """Not in the kernel: the maximum units per second, over all threads, above 0 and finite; None: no limit."""
    monitor: Monitor | None = field(default=None, kw_only=True)
    """Not in the kernel: observes every step."""
    thread_start: Callable[[int], object] | None = field(default=None, kw_only=True)
    """Not in the kernel: each helper thread calls it with its slot at its start, on its NUMA node (for example to set a
    name)."""
    pick: Callable[[int], int] = field(default=random.SystemRandom().randrange, kw_only=True)
    """Chooses one of a number of nodes with work left; returns 0 to that number minus 1 (prandom_u32_max).

    The default has no state, which all forked processes would share.
    """
    clock: Clock = field(default_factory=SystemClock, kw_only=True)
    machine: Machine = field(default_factory=LinuxMachine, kw_only=True)

    def __post_init__(self) -> None:
        for name in ("thread_func", "iter_func", "undo_func", "thread_start", "pick"):
            value = getattr(self, name)
            if not callable(value) and (value is not None or name not in ("undo_func", "thread_start")):
                raise TypeError(f"{name} is {value!r}")
            if _only_makes_an_object(value):
                raise TypeError(f"{name} is a generator or coroutine function")
        if self.threads not in ("found", "fixed"):
            raise ValueError(f"threads is {self.threads!r}")
        for name in ("undo_failed", "fixed_chunks"):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"{name} is {getattr(self, name)!r}")
        if self.undo_failed and self.undo_func is None:
            raise ValueError("undo_failed needs an undo_func")
        for name, kind in (("budget", HelperBudget), ("monitor", Monitor)):
            value = getattr(self, name)
            if value is not None and not isinstance(value, kind):
                raise TypeError(f"{name} is {value!r}")
        for name, least, most in (
            ("min_chunk_size", 1, None),
            ("align", 1, None),
            ("max_threads", 0, None),
            ("nice", -20, 19),
            ("cpu_percent", 0, 100),
            ("load_bal_shift", 0, None),
        ):
            value = index(getattr(self, name))
            object.__setattr__(self, name, value)
            if value < least or (most is not None and value > most):
                raise ValueError(f"{name} is {value}")
        object.__setattr__(self, "rate", checked_rate(self.rate))
        if self.max_chunk_size is not None:
            object.__setattr__(self, "max_chunk_size", index(self.max_chunk_size))
            if self.max_chunk_size < batch_size(self.min_chunk_size, self.align):
                raise ValueError(f"max_chunk_size {self.max_chunk_size} is below the smallest chunk")
