"""Python programs that a test starts as processes, and their open files."""

from __future__ import annotations

import os
import subprocess

_BEGIN = """
import mmap, os, sys
"""


def running(program: str, uid: int = 0) -> subprocess.Popen[bytes]:
    """A process that has run ``program``, and waits."""
    command = ["/usr/bin/python3", "-I", "-c", f"{_BEGIN}{program}\nprint(flush=True); sys.stdin.read()"]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd="/", user=uid, group=uid, extra_groups=[]
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"\n"
    return process


def ended(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.communicate()


def opened(pid: int, name: str) -> str:
    """The /proc path of a descriptor of the file whose name contains ``name``."""
    paths = [f"/proc/{pid}/fd/{fd}" for fd in os.listdir(f"/proc/{pid}/fd")]
    return next(path for path in paths if name in os.readlink(path))
