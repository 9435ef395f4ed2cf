"""Another process that has a file open or mapped, or huge pages."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from tests.support import huge_holder

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from tests.support.users import User

USES: Final = {
    "reads": "os.open(path, os.O_RDONLY)",
    "writes": "os.open(path, os.O_RDWR)",
    "maps": "fd = os.open(path, os.O_RDWR); kept = mmap.mmap(fd, 0); os.close(fd)",
    "maps to read": "fd = os.open(path, os.O_RDONLY); kept = mmap.mmap(fd, 0, prot=mmap.PROT_READ); os.close(fd)",
    "has inherited": "pass",
}
"""How a file is held, as Python."""
_PROGRAM: Final = "import mmap, os, sys; path = sys.argv[1]; {}; print(flush=True); sys.stdin.read()"


@contextlib.contextmanager
def used(path: Path | str, use: str, *, inherited: Sequence[int] = ()) -> Iterator[subprocess.Popen[bytes]]:
    """A process that uses the file in one of the ways of USES, until the end or until it is killed."""
    command = [sys.executable, "-c", _PROGRAM.format(USES[use]), str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=inherited) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"\n"
        try:
            yield process
        finally:
            process.kill()


@dataclass(frozen=True)
class HugeHolder:
    """A process of ``huge_holder.py``, and the number that it printed, if any."""

    pid: int
    number: int | None


@contextlib.contextmanager
def holding(how: str, page_size: int, path: Path, user: User | None = None) -> Iterator[HugeHolder]:
    """A process that holds huge pages in one of the ways of ``huge_holder.HOW``; its segment goes at the end."""
    command = [sys.executable, "-I", huge_holder.__file__, how, str(page_size), str(path)]
    if user is not None:
        command = ["setpriv", f"--reuid={user.uid}", f"--regid={user.gid}", "--clear-groups", *command]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd="/") as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        number = line.strip()
        try:
            assert line
            yield HugeHolder(process.pid, int(number) if number else None)
        finally:
            process.kill()
            if number and how.startswith("sysv"):
                subprocess.run(["ipcrm", "-m", number], check=True)
