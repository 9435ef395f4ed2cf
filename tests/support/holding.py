"""Another process that has a file open or mapped."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

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
