"""Segments of SysV shared memory. sysvipc(7), shmat(2), proc_sysvipc(5)."""

from __future__ import annotations

import contextlib
import ctypes
from typing import TYPE_CHECKING, Final, NamedTuple

from ktaskfs.libc import LIBC, checked

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ktaskfs.host.kernel import Kernel

SHM_RDONLY: Final = 0o10000
SHM_DEST: Final = 0o1000
"""In the mode of a segment: removed at the last detach."""


class Segment(NamedTuple):
    """A segment: its number, key, size and resident bytes, and its creator's uid.

    For huge pages Linux 6.7 and later multiply ``resident`` by the number of pages in a huge page.
    """

    number: int
    key: int
    mode: int
    size: int
    attached: int
    uid: int
    resident: int

    @property
    def text(self) -> str:
        """Its name for people: number and key, as in ipcs(1)."""
        return f"shmid {self.number} key 0x{self.key & 0xFFFFFFFF:08x}"


def segments(kernel: Kernel) -> list[Segment]:
    """The segments of this process's IPC namespace; none on a kernel without them. Raises OSError."""
    try:
        lines = kernel.read_proc("sysvipc/shm").splitlines()[1:]
    except FileNotFoundError:
        return []
    found = []
    for line in lines:
        key, number, mode, size, _, _, attached, uid, *_, resident, _ = line.split()
        found.append(Segment(int(number), int(key), int(mode, 8), int(size), int(attached), int(uid), int(resident)))
    return found


def stay_when_detached(kernel: Kernel) -> bool:
    """Whether a segment survives without attached processes (kernel.shm_rmid_forced is off). Raises OSError."""
    return kernel.read_proc("sys/kernel/shm_rmid_forced").strip() == "0"


@contextlib.contextmanager
def attached(number: int) -> Iterator[int]:
    """The address of a segment, attached read-only within this context. Raises OSError."""
    attach = LIBC["shmat"]
    attach.restype = ctypes.c_void_p
    address = attach(number, None, SHM_RDONLY)
    if address == ctypes.c_void_p(-1).value:
        checked(-1)
    try:
        yield address
    finally:
        checked(LIBC["shmdt"](ctypes.c_void_p(address)))
