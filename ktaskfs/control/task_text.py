"""The text of a task's status files, made on demand."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from ktaskfs.errors import errno_name
from ktaskfs.progress import FoundWhy
from ktaskfs.tasks.task import ENDED, State
from ktaskfs.units import escaped, table

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ktaskfs.operations.base.parameters import Parameter
    from ktaskfs.progress import Snapshot
    from ktaskfs.tasks.task import Task
    from ktaskfs.units import Units

BAR_WIDTH: Final = 20
FAR: Final = 365 * 86400
"""Maximum seconds of a known finish. The speed of stalled work falls, but not to 0."""


def seconds_at_work(snapshot: Snapshot) -> float:
    """Seconds from the beginning of the work to its end, or until now."""
    if not snapshot.started_ns:
        return 0.0
    end = snapshot.ended_ns or time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    return max(0, end - snapshot.started_ns) / 1e9


def percent(task: Task, snapshot: Snapshot) -> float:
    """Percentage of the task that is done; 100 for a done task without work."""
    total = task.total(snapshot)
    if total:
        return 100 * task.done(snapshot) / total
    return 100.0 if task.state is State.DONE else 0.0


def speed(task: Task, snapshot: Snapshot) -> float:
    """Units a second: a moving average while the task runs, the mean of the whole run after its end."""
    return task.pace.speed(snapshot, time.clock_gettime_ns(time.CLOCK_BOOTTIME))


def seconds_left(task: Task, snapshot: Snapshot, rate: float) -> float | None:
    """Remaining seconds of a running task at ``rate`` units a second; None if unknown."""
    left = task.total(snapshot) - task.done(snapshot)
    return left / rate if task.state is not State.PAUSED and rate > 0 and left < rate * FAR else None


def format_speed(units: Units, rate: float) -> str:
    """A rate for people: ``19.4GiB/s``, ``5120pages/s``."""
    return f"{units.amount(rate)}/s"


def progress(task: Task) -> str:
    """``done / total`` (md's sync_completed; Documentation/admin-guide/md.rst)."""
    snapshot = task.snapshot()
    return f"{task.done(snapshot)} / {task.total(snapshot)}\n"


def progress_line(task: Task, snapshot: Snapshot) -> str:
    """A line of ``wait``, in the form of /proc/mdstat."""
    done, total, rate = task.done(snapshot), task.total(snapshot), speed(task, snapshot)
    part = percent(task, snapshot)
    filled = int(part * BAR_WIDTH / 100)
    bar = ("=" * filled + ">" + "." * BAR_WIDTH)[:BAR_WIDTH] if filled < BAR_WIDTH else "=" * BAR_WIDTH
    left = seconds_left(task, snapshot, rate)
    finish = "unknown" if left is None else f"{left:.1f}s"
    return f"[{bar}] {part:5.1f}% ({done}/{total}) finish={finish} speed={format_speed(task.units, rate)}\n"


def error(task: Task) -> str:
    """``0``, or ``ERRNAME at POSITION: message``."""
    snapshot = task.snapshot()
    if not snapshot.errno:
        return "0\n"
    return f"{errno_name(snapshot.errno)} at {snapshot.error_position}: {snapshot.message}\n"


def threads(task: Task) -> str:
    """A row for each thread; the range is in the operation's units, ``-`` between chunks."""
    snapshot = task.snapshot()
    rows = []
    for each in snapshot.threads:
        start = snapshot.nodes[each.node].start if each.node < len(snapshot.nodes) else 0
        live = task.worker is not None
        cpu = None if task.worker is None else task.worker.cpu_of(each.tid)
        rows.append(
            (
                each.tid,
                "-" if each.nid < 0 else each.nid,
                "-" if cpu is None else cpu,
                each.state.name.lower() if live or each.state.name == "FAILED" else "ended",
                each.chunks,
                each.units,
                each.busy_us,
                f"{start + each.start}-{start + each.end}" if each.start < each.end else "-",
            )
        )
    return table(("tid", "node", "cpu", "state", "chunks", "done", "busy_us", "range"), rows)


def _when(nanoseconds: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S %z", time.localtime(nanoseconds / 1e9))


def _found(snapshot: Snapshot) -> str:
    """The number of threads that help, and the reason for that number."""
    if not snapshot.found:
        return ""
    if snapshot.found_why is FoundWhy.MOST:
        why = "the limit is reached"
    elif snapshot.found_why is FoundWhy.TRYING:
        why = "trying others"
    elif snapshot.found_nid >= 0:
        why = f"the memory bandwidth of node {snapshot.found_nid} is used up"
    else:
        why = "more do not help"
    return f" ({snapshot.found} help: {why})"


def status(task: Task, parameters: Iterable[Parameter], notes: str = "") -> str:
    """Everything for people, in the form of /proc/PID/status.

    ``parameters`` are those of the task, ``notes`` are about its state: a pending cancel, or what holds it.
    """
    snapshot = task.snapshot()
    done, total, units = task.done(snapshot), task.total(snapshot), task.units
    rate = speed(task, snapshot)
    left = None if task.state in ENDED else seconds_left(task, snapshot, rate)
    fields: list[tuple[str, object]] = [
        ("Name", task.name),
        ("Operation", "-" if task.operation is None else task.operation.name),
        ("State", f"{task.state} ({notes})" if notes else task.state),
    ]
    fields += [(each.name.capitalize(), escaped(task.parameter_text(each))) for each in parameters]
    fields += [
        ("Uid", task.uid),
        ("Gid", task.gid),
        ("Worker", "-" if task.worker is None else task.worker.pid),
        ("Threads", f"{len(snapshot.threads)}{_found(snapshot)}"),
        ("Chunks", sum(each.chunks for each in snapshot.threads)),
        ("Done", f"{done} {units}"),
        ("Total", f"{total} {units}"),
        ("Percent", f"{percent(task, snapshot):.1f}"),
        ("Speed", format_speed(units, rate)),
        ("Seconds", f"{seconds_at_work(snapshot):.3f}"),
        ("Finish", "-" if left is None else f"{left:.1f}s"),
        ("Created", _when(task.created_ns)),
        ("Error", error(task).strip()),
    ]
    return "".join(f"{key}:\t{value}\n" for key, value in fields)
