"""The cost of ``ktaskfs run --hosts`` on the controlling host: CPU and memory, in a minute with a line a second from
each host.

The hosts are processes of this machine, started by ClusterShell's worker for local commands. Each prints a line of
realistic length every second. Only the controlling process counts, not its children.
"""

from __future__ import annotations

import fcntl
import os
import select
import struct
import subprocess
import sys
import termios
from pathlib import Path
from typing import TYPE_CHECKING, Final

from bench.harness import main
from bench.report import Goal, Section, Series

if TYPE_CHECKING:
    from bench.harness import Settings

HOSTS: Final = (64, 512)
GOAL_HOSTS: Final = 512
PLAIN: Final = "plain lines"
LIVE: Final = "a live table"
ROWS: Final = 50
COLUMNS: Final = 160
"""Of the terminal."""
MINUTE: Final = 60
ROUNDS_MOST: Final = 2
"""A round takes four minutes, and CPU time of a minute varies little."""
SPEC: Final = "fallocate path=/dev/hugepages/vm0 length=64G"
CPU_MOST: Final = 5.0
"""Seconds for 512 hosts."""
MEMORY_MOST: Final = 40 << 20
"""Bytes for 512 hosts."""
AGENT: Final = r"""
exec 3<> <(:)
total=68719476736
for ((i = 0; i <= $1; i++)); do
    state=running
    ((i < $1)) || state=done
    printf '{"name": "vm0", "operation": "fallocate", "state": "%s", "uid": 0, "gid": 0, ' $state
    printf '"pid": 4242, "threads": 4, "max_threads": 4, "nice": 19, "rate_max": null, "units": "bytes", '
    printf '"done": %d, "total": %d, "chunks": %d, ' $((i * total / $1)) $total $((i * 17))
    printf '"elapsed_usec": %d, "created_usec": 1764464256000000, ' $((i * 1000000))
    printf '"started_usec": 1764464256000000, "ended_usec": null, "errno": null, "error": null, '
    printf '"error_position": null, "percent": %d.0, "speed": 1145324612, ' $((i * 100 / $1))
    printf '"finish_usec": 9000000, "result": null, "stale": false}\n'
    ((i == $1)) || read -rt 1 -u 3
done
"""
"""The output of a host for so many seconds. bash has no sleep of its own; a read that times out starts no process."""


def _cost(count: int, seconds: int, *, live: bool) -> tuple[float, float]:
    """Seconds of CPU, and the most bytes resident, of the controlling process; ``live`` on a terminal."""
    agent = Path(os.environ.get("TMPDIR", "/tmp"), f"ktaskfs-agent-{os.getpid()}")
    agent.write_text(AGENT)
    words = [sys.executable, "-m", "ktaskfs.cli.main", "run", "--hosts", f"hv[0001-{count:04}]"]
    master, terminal = os.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
    used = resident = 0.0
    try:
        with subprocess.Popen(
            [*words, "--via", f"bash {agent} {seconds}", SPEC],
            stderr=terminal if live else subprocess.DEVNULL,
            env={**os.environ, "TERM": "xterm"},
        ) as process:
            while process.poll() is None:  # an ended process keeps its figures until this reads them
                now, peak = _now(process.pid)
                used, resident = now, max(resident, peak)
                if select.select([master], [], [], 0.1)[0]:
                    os.read(master, 1 << 16)
    finally:
        agent.unlink()
        os.close(master)
        os.close(terminal)
    if process.returncode != 0:
        raise RuntimeError(f"the command ended with status {process.returncode}")
    return used, resident


def _now(pid: int) -> tuple[float, float]:
    """CPU so far, and the most bytes resident; none of one that has ended."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    peak = sum(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM"))
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK"), float(peak)


def measure(settings: Settings) -> list[Section]:
    """One run for each number of hosts and round, on a terminal and without."""
    counts, seconds = ((2, 8), 1) if settings.smoke else (HOSTS, MINUTE)
    kinds = {f"{count} hosts, {what}": (count, what == LIVE) for count in counts for what in (PLAIN, LIVE)}
    costs: dict[str, list[tuple[float, float]]] = {name: [] for name in kinds}
    for _ in range(min(settings.rounds, ROUNDS_MOST)):
        for name, (count, live) in kinds.items():
            costs[name].append(_cost(count, seconds, live=live))
    judged = f"{GOAL_HOSTS if not settings.smoke else counts[-1]} hosts, {LIVE}"
    note = f"Each host prints a line a second for {seconds} s; then all are done."
    return [
        Section(
            "CPU of the controlling process",
            [Series(name, [cpu for cpu, _ in found]) for name, found in costs.items()],
            goals=[Goal(f"CPU for {judged}", judged, None, most=CPU_MOST)],
            note=note,
        ),
        Section(
            "Memory of the controlling process, the most that was resident",
            [Series(name, [memory for _, memory in found]) for name, found in costs.items()],
            unit="bytes",
            goals=[Goal(f"memory for {judged}", judged, None, most=float(MEMORY_MOST))],
            note=note,
        ),
    ]


if __name__ == "__main__":
    main("fleet", "Many hosts", measure)
