"""The kernel's own files, held open.

A worker changes its root to its caller's, where /proc, /sys and /dev may be missing or the caller's own making.
So whoever will need them takes descriptors first, and reads by name below those afterwards.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Final

from ktaskfs.host import namespaces
from ktaskfs.host.cgroups import GroupMounts

_READ_SIZE: Final = 1 << 16


@dataclass(frozen=True)
class Kernel:
    """O_PATH descriptors of /proc and /sys, /dev/zero open for reading, and the mounts of control groups.

    They stay right across fork(2): ``self`` below the descriptor of /proc means whoever looks it up.
    """

    proc: int
    sys: int
    zero: int
    cgroups: GroupMounts = field(default_factory=lambda: GroupMounts({}))

    @classmethod
    def open(cls) -> Kernel:
        """Open them now; raises OSError."""
        zero = os.open("/dev/zero", os.O_RDONLY | os.O_CLOEXEC)
        return cls(namespaces.open_mount("/proc"), namespaces.open_mount("/sys"), zero, GroupMounts.open())

    @classmethod
    def open_read_only(cls) -> Kernel:
        """Open read-only copies of these mounts, without those below each. Nothing can be changed there.

        Without CAP_SYS_ADMIN, or before Linux 5.12, the mounts as they are. Raises OSError.
        """
        zero = os.open("/dev/zero", os.O_RDONLY | os.O_CLOEXEC)
        proc, sys = (namespaces.open_harmless(path) for path in ("/proc", "/sys"))
        return cls(proc, sys, zero, GroupMounts.open_read_only())

    @property
    def descriptors(self) -> frozenset[int]:
        """All of them."""
        return frozenset({self.proc, self.sys, self.zero}) | self.cgroups.descriptors

    def close(self) -> None:
        """Close all of them."""
        for fd in self.descriptors:
            os.close(fd)

    def read_sys(self, path: str) -> str:
        """The text of a file below /sys, without the white space around it; raises OSError."""
        return _read(self.sys, path).strip()

    def read_proc(self, path: str) -> str:
        """The text of a file below /proc; raises OSError."""
        return _read(self.proc, path)

    def list_sys(self, path: str) -> list[str]:
        """The sorted names in a directory below /sys; empty if there is no such directory."""
        try:
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self.sys)
        except FileNotFoundError:
            return []
        try:
            return sorted(os.listdir(fd))
        finally:
            os.close(fd)

    def reopen(self, fd: int, flags: int) -> int:
        """Open the file behind an O_PATH descriptor for use, with the access checks of an ordinary open(2)."""
        return os.open(f"self/fd/{fd}", flags | os.O_CLOEXEC, dir_fd=self.proc)

    def available_memory(self) -> int:
        """Bytes that can be had without killing anyone, free swap included (MemAvailable is itself an estimate)."""
        lines = (line.split() for line in self.read_proc("meminfo").splitlines())
        values = {words[0]: int(words[1]) << 10 for words in lines if words[-1] == "kB"}
        return values["MemAvailable:"] + values["SwapFree:"]


def _read(directory: int, path: str) -> str:
    """Bytes decoded as UTF-8, which the interpreter does itself: any other codec is a module to be found first."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC, dir_fd=directory)
    try:
        pieces = []
        while piece := os.read(fd, _READ_SIZE):
            pieces.append(piece)
    finally:
        os.close(fd)
    return b"".join(pieces).decode(errors="replace")
