"""An attacker: requests one file endlessly, from many threads, and ignores the answers.

    python flood.py open FILE THREADS    open, read to the end, close
    python flood.py hold FILE THREADS    read a stream, from as many openings as the threads need and the user may have

Prints ``flooding`` when all threads are at it, and for each SIGUSR1 how many system calls the mount has answered.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import signal
import sys
import threading

CALLS = itertools.count()
"""Its ``next`` is atomic."""


def opening(path: str) -> None:
    while True:
        try:
            fd = os.open(path, os.O_RDONLY)
        except BlockingIOError:  # too many requests at a time
            continue
        next(CALLS)
        with contextlib.suppress(BlockingIOError):
            while os.read(fd, 65536):
                next(CALLS)
        os.close(fd)


def holding(fd: int) -> None:
    while True:
        try:
            os.read(fd, 4096)  # of one opening one thread at a time: the kernel lets the others wait
        except BlockingIOError:
            continue
        next(CALLS)


def openings(path: str, most: int) -> list[int]:
    """Openings of a file, until one is refused."""
    held: list[int] = []
    try:
        while len(held) < most:
            held.append(os.open(path, os.O_RDONLY))
    except OSError as error:
        if error.errno != errno.EMFILE:
            raise
    return held


def main() -> None:
    what, path, count = sys.argv[1:]
    threading.stack_size(65536)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    held = openings(path, int(count)) if what == "hold" else []
    for number in range(int(count)):
        if what == "hold":
            threading.Thread(target=holding, args=(held[number % len(held)],), daemon=True).start()
        else:
            threading.Thread(target=opening, args=(path,), daemon=True).start()
    print("flooding", flush=True)
    while signal.sigwait({signal.SIGUSR1}):
        print(next(CALLS), flush=True)


main()
