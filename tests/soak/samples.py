"""The daemon's use of resources, sampled over a long run, and the tables of its report."""

from __future__ import annotations

import statistics
from collections import defaultdict
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Final

import psutil

from tests.support.resident import resident

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from tests.support.daemon import Mount

WORD_EVERY: Final = 60.0
"""Seconds between two lines of a run that say how it goes."""


@dataclass(frozen=True)
class Sample:
    """The daemon at one moment. Sizes are in KiB; ``private`` is what it shares with no other process.

    children: its own, dead ones included; there is one, the spawner.
    handles, tasks: from ``metrics``.
    tracebacks: lines of its log so far.
    cpu: seconds of processor time so far.
    """

    rss: float
    pss: float
    private: float
    descriptors: float
    threads: float
    children: float
    handles: float
    tasks: float
    tracebacks: float
    cpu: float


class Sampler:
    """Takes samples of one mount's daemon."""

    def __init__(self, mount: Mount) -> None:
        self._mount = mount
        self._process = psutil.Process(mount.pid)
        self._log_read = 0
        self._tracebacks = 0
        self.first_traceback = ""
        """With the lines after it in the log."""
        self.samples: list[Sample] = []

    def take(self) -> None:
        """One more. Raises OSError or AssertionError where the mount does not answer."""
        lines = (self._mount.path / "metrics").read_text().splitlines()
        metrics: dict[str, float] = defaultdict(float)
        for line in lines:
            if not line.startswith("#"):
                metrics[line.partition("{")[0].split()[0]] += float(line.split()[-1])
        memory, times = self._process.memory_full_info(), self._process.cpu_times()
        self.samples.append(
            Sample(
                rss=resident(self._process.pid) / 1024,
                pss=memory.pss / 1024,
                private=memory.uss / 1024,
                descriptors=self._process.num_fds(),
                threads=self._process.num_threads(),
                children=len(self._process.children()),
                handles=metrics["ktaskfs_open_handles"],
                tasks=metrics["ktaskfs_tasks"],
                tracebacks=self._count_tracebacks(),
                cpu=times.user + times.system,
            )
        )

    def _count_tracebacks(self) -> int:
        with self._mount.log.open("rb") as log:
            log.seek(self._log_read)
            new = log.read()
        whole = new[: new.rfind(b"\n") + 1]
        self._log_read += len(whole)
        if not self.first_traceback and b"Traceback" in whole:
            self.first_traceback = whole[whole.index(b"Traceback") :].decode(errors="replace")
        self._tracebacks += sum(b"Traceback" in line for line in whole.splitlines())
        return self._tracebacks


SLACK: Final = {"rss": 4096.0, "pss": 4096.0, "private": 4096.0, "tasks": 50.0}
"""The allowed increase of the later median, beside a twentieth of the earlier one; 3 for unnamed figures."""


def is_flat(name: str, values: Sequence[float]) -> bool:
    """Whether the median of the last tenth is about that of the second tenth, or below it."""
    tenth = max(1, len(values) // 10)
    early = statistics.median(values[tenth : 2 * tenth] or values[-1:])
    late = statistics.median(values[-tenth:])
    return late <= early + max(early / 20, SLACK.get(name, 3.0))


def samples_table(samples: Sequence[Sample]) -> str:
    """First, median, last and greatest of each figure after a warm-up of a tenth, and whether it is flat."""
    rows: list[tuple[str, ...]] = [("figure", "first", "median", "last", "greatest", "flat")]
    kept = samples[len(samples) // 10 :]
    for field in fields(Sample):
        if field.name == "cpu":
            continue
        values = [getattr(sample, field.name) for sample in kept]
        figures = (values[0], statistics.median(values), values[-1], max(values))
        flat = is_flat(field.name, [getattr(sample, field.name) for sample in samples])
        rows.append((field.name, *(f"{value:.0f}" for value in figures), "yes" if flat else "NO"))
    return table(rows)


def table(rows: Sequence[tuple[str, ...]]) -> str:
    """A table of Markdown; the first row is its head."""
    head, *body = rows
    return "".join(f"| {' | '.join(row)} |\n" for row in (head, ("---",) * len(head), *body))


def tasks_table(counts: Mapping[str, int], states: Sequence[str]) -> str:
    """Tasks by operation and outcome, of counts whose keys are ``OPERATION STATE``."""
    operations = sorted({key.split()[0] for key in counts if key.split()[-1] in states and key.count(" ") == 1})
    rows: list[tuple[str, ...]] = [("operation", *states)]
    rows += [(each, *(str(counts.get(f"{each} {state}", 0)) for state in states)) for each in operations]
    return table(rows)


def log_of(path: Path, lines: int = 20) -> str:
    """The end of a log."""
    return "\n".join(path.read_text(errors="replace").splitlines()[-lines:])
