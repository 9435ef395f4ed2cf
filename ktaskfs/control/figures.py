"""A task for programs: its figures as values, and as the text of ``stat`` and ``stat.json``."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Final

from ktaskfs.control.task_text import percent, seconds_at_work, seconds_left, speed
from ktaskfs.tasks.task import ENDED, State

if TYPE_CHECKING:
    from ktaskfs.tasks.task import Task


@dataclass(frozen=True, kw_only=True)
class Figures:
    """Numbers in base units; None if unknown or absent.

    Fields are stable. ``done``, ``total`` and ``speed`` (a second) are in ``units``.
    """

    name: str
    state: str | None = None
    operation: str | None = None
    uid: int
    gid: int | None = None
    pid: int | None = None
    threads: int | None = None
    threads_found: int | None = None
    max_threads: int | None = None
    nice: int | None = None
    rate_max: int | None = None
    chunks: int | None = None
    done: int | None = None
    total: int | None = None
    units: str | None = None
    busy_usec: int | None = None
    created_usec: int
    elapsed_usec: int | None = None
    errno: int | None = None
    error_position: int | None = None
    error: str | None = None
    percent: float | None = None
    speed: int | None = None
    finish_usec: int | None = None

    @classmethod
    def of(cls, task: Task) -> Figures:
        """All figures of ``task``."""
        snapshot = task.snapshot()
        total, requests, failed = task.total(snapshot), task.requests, snapshot.errno != 0
        rate = speed(task, snapshot)
        left = None if task.state in ENDED else seconds_left(task, snapshot, rate)
        return cls(
            name=task.name,
            state=str(task.state),
            operation=None if task.operation is None else task.operation.name,
            uid=task.uid,
            gid=task.gid,
            pid=None if task.worker is None else task.worker.pid,
            threads=len(snapshot.threads),
            threads_found=snapshot.found or None,
            max_threads=requests.threads or None,
            nice=requests.nice,
            rate_max=requests.rate or None,
            chunks=sum(each.chunks for each in snapshot.threads),
            done=task.done(snapshot),
            total=total if total or snapshot.started_ns else None,
            units=task.units.name,
            busy_usec=sum(each.busy_us for each in snapshot.threads),
            created_usec=task.created_ns // 1000,
            elapsed_usec=round(seconds_at_work(snapshot) * 1e6),
            errno=snapshot.errno or None,
            error_position=snapshot.error_position if failed else None,
            error=snapshot.message if failed else None,
            percent=round(percent(task, snapshot), 1) if total or task.state is State.DONE else None,
            speed=round(rate) if snapshot.started_ns else None,
            finish_usec=None if left is None else round(left * 1e6),
        )

    @classmethod
    def outline(cls, task: Task) -> Figures:
        """The figures of ``task`` for users who may list it, but not read its files."""
        return cls(name=task.name, uid=task.uid, created_usec=task.created_ns // 1000)

    @property
    def json(self) -> str:
        """An object on one line."""
        return json.dumps(vars(self))


_STAT: Final = tuple(each.name for each in fields(Figures))
_STAT_KEYS: Final = _STAT[_STAT.index("state") : _STAT.index("error")]


def stat(task: Task) -> str:
    """Flat-keyed as in cgroup v2; ``-`` or 0 if unknown."""
    found = vars(Figures.of(task))
    return "".join(f"{key} {_stat_word(key, found[key])}\n" for key in _STAT_KEYS)


def _stat_word(key: str, figure: object) -> str:
    if figure is None:
        return "-" if key == "operation" else "0"
    return str(figure)


def stat_json(task: Task) -> str:
    """All figures as a JSON object, with the identity of each file that the task began with."""
    baseline = task.history.baseline
    return json.dumps({**vars(Figures.of(task)), "files": {} if baseline is None else dict(baseline.files)}) + "\n"
