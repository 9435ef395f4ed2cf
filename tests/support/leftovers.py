"""Processes that outlived what started them."""

from __future__ import annotations

import contextlib
import ctypes
import os
from typing import TYPE_CHECKING, Final

import psutil

from tests.support.poll import DEADLINE, until

if TYPE_CHECKING:
    from collections.abc import Iterator

PR_SET_CHILD_SUBREAPER: Final = 36


@contextlib.contextmanager
def none_left(deadline: float = DEADLINE) -> Iterator[None]:
    """Every process started in the body, however detached, has ended soon after it; kills those and fails.

    This process becomes the subreaper, so that an orphan becomes its child instead of vanishing below PID 1.
    """
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    before = set(psutil.Process().children(recursive=True))
    left: list[psutil.Process] = []

    def gone() -> bool:
        left[:] = [child for child in psutil.Process().children(recursive=True) if child not in before]
        for child in left:
            with contextlib.suppress(psutil.NoSuchProcess):  # its own parent has just read its status
                if child.is_running() and child.status() == psutil.STATUS_ZOMBIE and child.ppid() == os.getpid():
                    os.waitpid(child.pid, 0)
        return not left

    try:
        yield
    finally:
        try:
            until(gone, "the end of every process that was started", deadline=deadline)
        except AssertionError:
            found = []
            for child in left:
                with contextlib.suppress(psutil.NoSuchProcess):
                    found.append(f"{child.pid} {child.cmdline() or child.name()}")
                    child.kill()
                    child.wait()
            raise AssertionError(f"processes left behind: {found}") from None
