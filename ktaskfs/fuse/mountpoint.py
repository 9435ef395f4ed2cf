"""What is mounted at a path, and how to unmount it. Nothing here looks into the mount, which may not answer."""

from __future__ import annotations

import errno
import os
import re
import subprocess
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

_ESCAPE = re.compile(rb"\\([0-7]{3})")


def filesystems_at(path: str, otherwise: Sequence[str] = ()) -> list[str]:
    """``major:minor`` of each filesystem mounted at ``path``, the uppermost last; see proc_pid_mountinfo(5).

    Returns ``otherwise`` if no descriptor is left to look with.
    """
    try:
        with open("/proc/self/mountinfo", "rb") as file:
            lines = file.readlines()
    except OSError as error:
        if error.errno not in (errno.EMFILE, errno.ENFILE):
            raise
        return list(otherwise)
    wanted = os.fsencode(path)
    found = []
    for line in lines:
        _, _, device, _, at = line.split(b" ", 5)[:5]
        if _ESCAPE.sub(lambda octal: bytes([int(octal[1], 8)]), at) == wanted:
            found.append(device.decode())
    return found


def detach(path: str) -> None:
    """Unmount the uppermost filesystem at ``path``, served or not. The command prints its own errors."""
    command = ["umount", "-l"] if os.geteuid() == 0 else ["fusermount3", "-u", "-z"]
    subprocess.run([*command, path], check=False)
