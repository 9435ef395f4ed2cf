"""What is mounted at a path, and how it is taken away; without a look at the mount itself, which may not answer."""

from __future__ import annotations

import os
import re
import subprocess

_ESCAPE = re.compile(rb"\\([0-7]{3})")


def filesystems_at(path: str) -> list[str]:
    """``major:minor`` of each filesystem mounted at ``path``, the uppermost last. proc_pid_mountinfo(5)."""
    wanted = os.fsencode(path)
    found = []
    with open("/proc/self/mountinfo", "rb") as file:
        for line in file:
            _, _, device, _, at = line.split(b" ", 5)[:5]
            if _ESCAPE.sub(lambda octal: bytes([int(octal[1], 8)]), at) == wanted:
                found.append(device.decode())
    return found


def detach(path: str) -> None:
    """Unmount what is uppermost at ``path``, served or not; the command says what is wrong."""
    command = ["umount", "-l"] if os.geteuid() == 0 else ["fusermount3", "-u", "-z"]
    subprocess.run([*command, path], check=False)
