"""/dev/fuse for every user, for as long as any run of the tests wants it so."""

from __future__ import annotations

import contextlib
import fcntl
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

DEVICE: Final = Path("/dev/fuse")
LOCK: Final = Path("/run/ktaskfs-test-fuse.lock")
"""Shared by the processes that use the device now; holds the mode that the last of them gives back."""
FOR_ALL: Final = 0o666


@contextlib.contextmanager
def for_all() -> Iterator[None]:
    """Let every user open the device, as udev has it; without udev the kernel leaves it to root."""
    with LOCK.open("a+") as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)
        before = stat.S_IMODE(DEVICE.stat().st_mode)
        if before != FOR_ALL:
            LOCK.write_text(f"{before:o}")
            DEVICE.chmod(FOR_ALL)
        try:
            yield
        finally:
            with contextlib.suppress(BlockingIOError):  # another process uses the device
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if kept := LOCK.read_text():
                    DEVICE.chmod(int(kept, 8))
                    LOCK.write_text("")
