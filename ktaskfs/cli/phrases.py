"""The status of a task in words."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ktaskfs.errors import errno_name
from ktaskfs.units import human_size

if TYPE_CHECKING:
    from ktaskfs.cli.follow import Standing


def amount_text(standing: Standing, number: float) -> str:
    """``number`` with the task's units: ``29.5GiB``, ``512 pages``."""
    units = standing.figures.get("units", "bytes")
    return human_size(number) if units == "bytes" else f"{number:.0f} {units}"


def percent_text(standing: Standing) -> str:
    """``46.1%``, or the empty text if that is unknown."""
    part = standing.figures.get("percent")
    return "" if part is None else f"{part:.1f}%"


def progress_text(standing: Standing) -> str:
    """``29.5GiB/64.0GiB``, or the empty text before the work has begun."""
    total = standing.figures.get("total")
    if total is None:
        return ""
    return f"{amount_text(standing, standing.figures.get('done') or 0)}/{amount_text(standing, total)}"


def speed_text(standing: Standing) -> str:
    """``19.4GiB/s``, or the empty text."""
    rate = standing.figures.get("speed")
    return "" if rate is None else f"{amount_text(standing, rate)}/s"


def finish_text(standing: Standing) -> str:
    """The time that is left, ``1.9s``, or the empty text."""
    left = standing.figures.get("finish_usec")
    return "" if left is None else duration(left / 1e6)


def duration(seconds: float) -> str:
    """``1.9s``, ``3m20s``, ``2h05m``."""
    if round(seconds, 1) < 60:
        return f"{seconds:.1f}s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}m{rest:02}s" if minutes < 60 else f"{minutes // 60}h{minutes % 60:02}m"


def complaint(standing: Standing) -> str:
    """Why the task has not ended well."""
    figures, state = standing.figures, standing.state
    if state == "failed":
        where = f" at {figures['error_position']}" if figures["error_position"] else ""
        return f"{standing.name} failed: {errno_name(figures['errno'])}{where}: {figures['error']}"
    if state == "forgotten":
        return f"{standing.name} was removed, or has ended and was not kept (debug/ktask_keep_finished)"
    done = progress_text(standing)
    return f"{standing.name} was {state}{f' at {done}' if done else ''}"


def line(standing: Standing) -> str:
    """One line for a log."""
    if standing.stale:
        return f"{standing.name}: the daemon does not answer; trying again"
    if standing.state == "done":
        took = duration(standing.figures["elapsed_usec"] / 1e6)
        total = standing.figures.get("total")
        work = "" if total is None else f" {amount_text(standing, total)} in {took}, {speed_text(standing)}"
        return f"{standing.name}: done{work}"
    if standing.has_ended:
        return f"{standing.name}: {standing.state}"
    left = finish_text(standing)
    words = (percent_text(standing), progress_text(standing), speed_text(standing), left and f"finish {left}")
    return f"{standing.name}: {standing.state} {' '.join(filter(None, words))}".rstrip()
