"""A process whose memory is worked on."""

from __future__ import annotations

import contextlib
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

from bench.answering import AnsweringProcess
from tests.support.memory_files import HUGE

if TYPE_CHECKING:
    from collections.abc import Iterator

PAGES: Final = 40
PROGRAM: Final = """
import ctypes, hashlib, mmap, os, random, sys
size, how = int(sys.argv[1]), sys.argv[2]
if how == "off":
    ctypes.CDLL(None).prctl(41, 1, 0, 0, 0)
memory = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
memory.madvise(mmap.MADV_NOHUGEPAGE)
for at in range(0, size, 1 << 20):
    memory[at : at + (1 << 20)] = random.Random(at).randbytes(1 << 20)
if how != "refuses":
    memory.madvise(mmap.MADV_HUGEPAGE)
print(ctypes.addressof(ctypes.c_char.from_buffer(memory)), flush=True)
sys.stdin.readline()
print(hashlib.md5(memory).hexdigest(), flush=True)
sys.stdin.readline()
"""
"""Has ``size`` bytes in small pages; prints their address, and when asked their digest."""


class Victim(AnsweringProcess):
    """A process with ``size`` bytes of memory in small pages, from ``address`` on."""

    def __init__(self, size: int, how: str) -> None:
        super().__init__(PROGRAM, size, how)
        self.size = size
        self.address = int(self.greeting)

    def digest(self) -> str:
        """Of its memory now; once."""
        return self.ask()

    def huge(self) -> int:
        """Bytes of the mapping in huge pages. Python's own memory may have others, by the kernel's choice."""
        text = Path(f"/proc/{self.pid}/smaps").read_text()
        _, _, mapping = text.partition(f"{self.address:08x}-")
        found = re.search(r"^AnonHugePages: +(\d+) kB$", mapping, re.MULTILINE)
        assert found is not None
        return int(found[1]) << 10


@contextlib.contextmanager
def victim(how: str = "", size: int = PAGES * HUGE) -> Iterator[Victim]:
    """A victim that takes huge pages, ``refuses`` them (madvise(2)), or has them ``off`` (prctl(2))."""
    with contextlib.closing(Victim(size, how)) as found:
        yield found


def digest_of(size: int) -> str:
    """The value of ``Victim.digest`` as long as nobody has changed the memory."""
    program = "import hashlib, random, sys\nd = hashlib.md5()\nfor at in range(0, int(sys.argv[1]), 1 << 20):\n"
    program += "    d.update(random.Random(at).randbytes(1 << 20))\nprint(d.hexdigest())"
    return subprocess.run([sys.executable, "-c", program, str(size)], capture_output=True, text=True, check=True).stdout
