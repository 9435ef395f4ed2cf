"""Tasks whose history is changed by hand."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ktaskfs.tasks.task import Task


def change_history(task: Task, **changes: Any) -> None:
    """Replace some fields of the history of ``task``."""
    task.history = task.history._replace(**changes)


def change_texts(task: Task, **texts: str | None) -> None:
    """Give some parameters of ``task`` other texts; None unsets one."""
    changed = {name: text for name, text in ({**task.texts, **texts}).items() if text is not None}
    change_history(task, texts=changed)
