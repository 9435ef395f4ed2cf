"""An attacker: asks for one file again and again, from many threads, whatever the answer is.

    python flood.py open FILE THREADS    open, read to the end, close
    python flood.py hold FILE THREADS    read from one descriptor that all threads share

Prints ``flooding`` when all threads are at it.
"""

from __future__ import annotations

import os
import sys
import threading


def opening(path: str) -> None:
    while True:
        try:
            fd = os.open(path, os.O_RDONLY)
        except BlockingIOError:  # too many requests at a time
            continue
        try:
            while os.read(fd, 65536):
                pass
        except BlockingIOError:
            pass
        os.close(fd)


def holding(fd: int) -> None:
    while True:
        try:
            os.pread(fd, 4096, 1 << 40)  # not read(2), in which only one thread at a time may be
        except BlockingIOError:
            continue


def main() -> None:
    what, path, count = sys.argv[1:]
    threading.stack_size(65536)
    held = os.open(path, os.O_RDONLY) if what == "hold" else -1
    for _ in range(int(count)):
        if what == "hold":
            threading.Thread(target=holding, args=(held,), daemon=True).start()
        else:
            threading.Thread(target=opening, args=(path,), daemon=True).start()
    print("flooding", flush=True)
    threading.Event().wait()


main()
