"""Log lines about a task: operation, target, amount and duration; and the fields of the journal."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

from ktaskfs.operations.base.parameters import target_text
from ktaskfs.tasks.task import EMPTY, State, Task
from ktaskfs.units import escaped

if TYPE_CHECKING:
    from ktaskfs.errors import KtaskfsError
    from ktaskfs.progress import Snapshot

LEVELS: Final = {State.FAILED: logging.WARNING, State.INTERRUPTED: logging.WARNING}
"""Log levels of ends; the others are information."""


def log_fields(task: Task, **more: object) -> dict[str, object]:
    """The fields of a line about ``task``, for a log with fields (``ktaskfs.systemd.FIELDS``), and ``more``."""
    fields: dict[str, object] = {
        "KTASK_NAME": task.name,
        "KTASK_OPERATION": task.operation.name if task.operation else "",
        "KTASK_UID": task.uid,
        "KTASK_STATE": task.state,
    }
    if "path" in task.texts:
        fields["KTASK_PATH"] = escaped(task.texts["path"])
    return fields | more


def subject(task: Task, snapshot: Snapshot = EMPTY) -> str:
    """``clear /dev/hugepages/vm1 40M``: the operation, its target, and the amount, if known."""
    words = [task.operation.name] if task.operation else []
    declared = task.operation.declared if task.operation else ()
    if target := target_text(declared, task.texts):
        words.append(escaped(target))
    if total := task.total(snapshot):
        words.append(task.units.exact(total))
    return " ".join(words)


def log_end(log: logging.Logger, task: Task, state: State, final: Snapshot) -> None:
    """``task vm1: clear /dev/hugepages/vm1 40M done in 0.2s``; after an early end also the finished amount and the
    reason."""
    taken = max(0, final.ended_ns - final.started_ns) if final.started_ns else 0
    done, total = task.done(final), task.total(final)
    part = "" if done == total else f", {task.units.exact(done)} done"
    why = f": {final.message}" if final.message else ""
    fields = {"KTASK_DONE": done, "KTASK_TOTAL": total, "KTASK_USEC": taken // 1000}
    fields |= {"ERRNO": final.errno} if final.errno else {}
    log.log(
        LEVELS.get(state, logging.INFO),
        "task %s: %s %s in %.1fs%s%s",
        task.name,
        subject(task, final),
        state,
        taken / 1e9,
        part,
        why,
        extra=log_fields(task, **fields),
    )


def log_refusal(log: logging.Logger, task: Task, error: KtaskfsError) -> None:
    """``task vm1: fallocate /dev/hugepages/vm1 refused (ENOMEM): …``, for a failed start.

    A refused plan is logged as information. So is a start that somebody cancelled, in the words of ``error``:
    ``task vm1: fallocate /dev/hugepages/vm1 cancelled before the work began``.
    """
    cancelled = task.start_cancelled
    log.log(
        logging.INFO if task.only_plans or cancelled else logging.WARNING,
        "task %s: %s %s",
        task.name,
        subject(task),
        error.message if cancelled else f"refused ({error.errname}): {error.message}",
        extra=log_fields(task, KTASK_STATE=State.CANCELLED if cancelled else "refused", ERRNO=error.errno),
    )
