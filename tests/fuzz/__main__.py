"""Writes to control files that are made at random, by the million: the parser refuses each in plain words, or takes it.

    python -m tests.fuzz --specs 10000000

Uses all CPUs, needs no root, and mounts nothing. ``tests/fuzz/checks.py`` says what must hold. A write for which it
does not hold is made as short as possible and printed as Python writes bytes, to become a line of ``FOUND`` in
``tests/fuzz/test_fuzz.py``; the exit status is 1 then.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import time
from collections import Counter

from tests.fuzz.batch import BATCH, play
from tests.fuzz.checks import OPERATIONS

REPORT_EVERY = 10.0
"""Seconds between two lines about the rate."""
FAULTS_MAX = 20
"""After so many faults there is nothing more to learn."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="fuzz", description="Random writes to the control files of ktaskfs.")
    parser.add_argument("--specs", type=int, required=True, help="how many writes")
    parser.add_argument("--seed", type=int, default=time.time_ns() & 0xFFFFFFFF, help="of all that is random")
    parser.add_argument("--processes", type=int, default=len(os.sched_getaffinity(0)), help="default: one for each CPU")
    given = parser.parse_args()
    batches = -(-given.specs // BATCH)
    print(f"seed {given.seed}, {given.processes} processes, {len(OPERATIONS)} operations", flush=True)
    begin = told = time.monotonic()
    counts: Counter[str] = Counter()
    faults: set[str] = set()
    slowest = cpu = 0.0
    # spawn: a copy of this process would inherit what pytest or a debugger has in it
    with multiprocessing.get_context("spawn").Pool(given.processes, os.nice, (10,)) as pool:
        for done in pool.imap_unordered(play, (f"{given.seed}-{number}" for number in range(batches))):
            counts.update(done.counts)
            for fault in done.faults:
                if fault.kind not in faults:
                    faults.add(fault.kind)
                    print(f"BROKEN: {fault.kind}\n{fault.data!r}", flush=True)
            slowest = max(slowest, done.slowest)
            cpu += done.cpu
            now = time.monotonic()
            if now - told >= REPORT_EVERY:
                told = now
                print(f"{counts['writes']} writes, {counts['writes'] / (now - begin):.0f} a second", flush=True)
            if len(faults) >= FAULTS_MAX:
                break
        pool.terminate()
    taken = time.monotonic() - begin
    for name in ("writes", "accepted", "refused", "values"):
        print(f"{name}: {counts[name]}")
    print(f"{counts['writes'] / taken:.0f} writes a second, {taken / 60:.1f} minutes")
    print(f"each took {1e6 * cpu / counts['writes']:.0f} us of CPU time, the slowest {1000 * slowest:.0f} ms")
    print("Nothing was broken." if not faults else f"{len(faults)} kinds of faults.")
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main())
