"""The time to open and read ``info/holders``, with many processes that hold huge pages.

Usage: python -m bench.holders [--smoke] [--rounds N] (as root: it adds huge pages to the pool)
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from bench.harness import Contender, Goal, Section, Settings, alternate, main, seconds
from bench.mounts import DEADLINE, Ktaskfs, directory, hugetlbfs
from bench.pool import reserved
from ktaskfs.tasks.looks import MAX_AGE

if TYPE_CHECKING:
    from collections.abc import Iterator

PAGE: Final = 2 << 20
FILES: Final = 40
WANTED: Final = 0.5
"""Seconds, for 300 processes with 200 mappings each."""
HOLDERS: Final = """
import ctypes, os, signal, sys
how, directory, processes, mappings, files = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:])
page, shared, private, anonymous, no_reserve, huge = 2 << 20, 1, 2, 0x20, 0x4000, 0x40000 | 21 << 26
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
def mapped(fd, pages, flags):
    address = libc.mmap(None, ctypes.c_size_t(pages * page), 3, flags, fd, ctypes.c_long(0))
    assert address != ctypes.c_void_p(-1).value, os.strerror(ctypes.get_errno())
    return address
def touch(address):
    ctypes.memset(address, 1, 1)
pages = 2 if how == "reserved" else 1
for number in range(mappings):
    if how == "private":
        address = mapped(-1, 1, private | anonymous | no_reserve | huge)
    else:
        fd = os.open(f"{directory}/{number % files}", os.O_RDWR | os.O_CREAT)
        os.ftruncate(fd, pages * page)
        address = mapped(fd, pages, shared)
        os.close(fd)
    if number < files:
        touch(address)
for _ in range(processes - 1):
    if os.fork() == 0:
        libc.prctl(1, signal.SIGKILL)
        signal.pause()
print(flush=True)
sys.stdin.read()
os._exit(0)
"""
"""Processes with the same mappings: of pages in use, of pages in use and reserved ones, or private ones."""
KINDS: Final = {
    "in use": "of files, all of whose pages are in use",
    "reserved": "of files that have a page in use and a reserved one",
    "private": "of private memory, of which a part is in use",
}


def free_pages() -> int:
    return int(Path("/sys/kernel/mm/hugepages", f"hugepages-{PAGE >> 10}kB", "free_hugepages").read_text())


@contextlib.contextmanager
def holding(how: str, where: Path, processes: int, mappings: int) -> Iterator[None]:
    numbers = map(str, (processes, mappings, FILES))
    command = [sys.executable, "-I", "-c", HOLDERS, how, str(where), *numbers]
    before = free_pages()
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        if not process.stdout.readline():
            raise RuntimeError("the processes that hold pages could not be started")
        yield
    for each in where.iterdir():
        each.unlink()
    end = time.monotonic() + DEADLINE
    while free_pages() < before:  # its children end after it
        if time.monotonic() > end:
            raise RuntimeError(f"{before - free_pages()} huge pages are still in use after the end of their holders")
        time.sleep(0.01)


def measure(settings: Settings) -> list[Section]:
    processes, mappings = (3, 2) if settings.smoke else (300, 200)
    series = []
    with (
        directory() as where,
        reserved(PAGE, 2 * FILES * PAGE),
        hugetlbfs(where / "huge", PAGE) as huge,
        Ktaskfs(where / "mount", where / "state") as mount,
    ):

        def read(name: str) -> Contender:
            path = mount.path / "info/holders"
            return Contender(name, lambda: seconds(path.read_bytes), lambda: time.sleep(1.1 * MAX_AGE))

        series += alternate([read("nobody holds any")], settings.rounds)
        for how, words in KINDS.items():
            with holding(how, huge, processes, mappings):
                series += alternate([read(f"{processes} processes of {mappings} mappings {words}")], settings.rounds)
    return [
        Section(
            "Opening and reading info/holders, looked at anew each time",
            series,
            unit="ms",
            goals=[Goal(each.name, each.name, None, most=WANTED) for each in series],
            note="A process is forked for each look, and becomes the reader.",
        )
    ]


if __name__ == "__main__":
    main("holders", "Who holds the huge pages", measure)
