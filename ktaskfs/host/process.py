"""What /proc tells of a living thread."""

from __future__ import annotations


def thread_cpu(pid: int, tid: int) -> int | None:
    """The CPU that the thread ran on last (field 39 of /proc/PID/task/TID/stat); None if there is no such thread."""
    try:
        with open(f"/proc/{pid}/task/{tid}/stat", "rb") as file:
            text = file.read()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return int(text[text.rindex(b")") + 1 :].split()[36])


def is_stopped(pid: int) -> bool:
    """Whether the process is stopped by a signal or a tracer (state T or t)."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            text = file.read()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return text[text.rindex(b")") + 1 :].split()[0] in (b"T", b"t")
