"""Long runs on a real mount: everything at once for an hour, or the daemon killed again and again.

    python -m tests.soak --minutes 60
    python -m tests.soak --minutes 10 --kill-daemon

The first has root and two ordinary users do mixed operations on real memory, kills and stops workers and the spawner,
has readers come and go, and samples what the daemon takes. The second kills the daemon at random moments and mounts
again. Both print a report in Markdown at the end; the exit status is 1 if anything did not hold that must. As root.
"""

from __future__ import annotations

import argparse
import os
import resource
import signal
import sys
import time

from tests.soak.ground import ground
from tests.soak.kills import Kills
from tests.soak.run import Soak


def main() -> int:
    parser = argparse.ArgumentParser(prog="soak", description="A long run of ktaskfs under load and faults.")
    parser.add_argument("--minutes", type=float, required=True, help="how long")
    parser.add_argument("--kill-daemon", action="store_true", help="kill the daemon at random moments instead")
    parser.add_argument("--adoptions", type=int, default=0, help="of tasks at work after kills, at least")
    parser.add_argument("--seed", type=int, default=time.time_ns() & 0xFFFFFFFF, help="of all that is random")
    parser.add_argument("--pace", type=float, default=8, help="tasks a second, at most, of all together (not of kills)")
    options = parser.parse_args()
    # At SIGINT or SIGTERM a run restores everything first; in the background of a script SIGINT would be ignored.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.nice(10)
    begin = time.monotonic()
    with ground() as there:
        print(f"seed {options.seed} in {there.area}", flush=True)
        run: Soak | Kills
        if options.kill_daemon:
            run = Kills(there, options.minutes * 60, options.seed, options.adoptions)
        else:
            run = Soak(there, options.minutes * 60, options.seed, options.pace)
        report = run.run()
    usages = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    spent = sum(usage.ru_utime + usage.ru_stime for usage in usages)
    print(report)
    print(f"All of it took {100 * spent / (time.monotonic() - begin):.0f} % of a processor.\n")
    for each in run.broken:
        print(f"BROKEN: {each}")
    print("Nothing was broken." if not run.broken else f"{len(run.broken)} broken invariants.")
    return 1 if run.broken else 0


if __name__ == "__main__":
    sys.exit(main())
