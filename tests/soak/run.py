"""The soak: one daemon, and a crew of processes that use it for the whole time."""

from __future__ import annotations

import contextlib
import json
import random
import subprocess
import time
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from tests.soak.actor import WHO
from tests.soak.ground import Ground, HugePages, reap_orphans
from tests.soak.samples import WORD_EVERY, Sampler, log_of, samples_table, table, tasks_table
from tests.support.daemon import Mount, interpreter
from tests.support.poll import DEADLINE
from tests.support.processes import child_called
from tests.support.shell import environment

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

ACTORS: Final = 2
"""Of each of root and the two users."""
READERS: Final = 2
SAMPLE_EVERY: Final = 10.0
SPAWNER_LIVES: Final = (10.0, 40.0)
"""Seconds until the spawner is killed or stopped the next time."""
LONGEST: Final = 4000
"""Characters of a failure that go into the report; some quote the whole log."""
OPTIONS: Final = "mode=0666,keep_finished=200,max_tasks=10"
"""A user has two actors with three unfinished tasks each at most, and reaches the limit by the queue alone."""


@dataclass(frozen=True)
class Member:
    """A process of the crew; ``out`` and ``err`` are where its words go."""

    name: str
    process: subprocess.Popen[bytes]
    out: Path
    err: Path


class Soak:
    """One soak of ``seconds`` on ``ground``; ``pace`` is tasks a second of all actors together.

    ``broken`` says what did not hold.
    """

    def __init__(self, ground: Ground, seconds: float, seed: int, pace: float) -> None:
        self._ground = ground
        self._seconds = seconds
        self._seed = seed
        self._pace = pace
        self._random = random.Random(seed)
        self.broken: list[str] = []
        self.counts: Counter[str] = Counter()
        self.slowest = 0.0

    def run(self) -> str:
        """Soak to the end; the report."""
        area = self._ground.area
        state, point = area / "state", area / "mount"
        state.mkdir()
        point.mkdir()
        begin = time.monotonic()
        mount = Mount(point, statedir=state, log=area / "log", options=OPTIONS)
        with contextlib.ExitStack() as stack:
            stack.callback(self._close, mount)
            sampler = Sampler(mount)
            sampler.take()
            pool = HugePages(area)
            pool.start()
            stack.callback(pool.stop)
            crew = self._crew(mount)
            stack.callback(self._end, crew, 0.01)  # where the watch below was broken off
            size = len(crew)
            self._watch(mount, sampler, crew, begin + self._seconds)
            self._end(crew, 2 * DEADLINE)
            elapsed = time.monotonic() - begin
        self.broken += pool.broken
        self.counts["times with huge pages"] = pool.episodes
        self.counts["times without memory for huge pages"] = pool.missed
        lost, kills = self.counts["starts lost with the spawner"], self.counts["spawner killed"]
        if lost > kills * size:  # each member waits for one start at a time
            self.broken.append(f"{lost} starts failed with EIO and the spawner was killed {kills} times only")
        return self._report(sampler, elapsed)

    def _close(self, mount: Mount) -> None:
        with self._checked("the end of the mount"):
            mount.close()

    @contextlib.contextmanager
    def _checked(self, what: str) -> Iterator[None]:
        try:
            yield
        except (AssertionError, OSError) as error:
            self.broken.append(f"{what}: {str(error)[:LONGEST]}")

    def _crew(self, mount: Mount) -> list[Member]:
        crew = []
        pace = self._pace / (ACTORS * len(WHO))
        for number in range(ACTORS):
            for who in WHO:
                arguments = [str(self._ground.area), who, str(number), str(self._next_seed())]
                arguments += [str(self._seconds), str(pace)]
                crew.append(self._member(mount, f"{who}{number}", who, "tests.soak.scenarios", arguments))
        for number in range(READERS):
            arguments = [str(self._next_seed()), str(self._seconds)]
            crew.append(self._member(mount, f"reader{number}", "root", "tests.soak.reader", arguments))
        return crew

    def _next_seed(self) -> int:
        return self._random.randrange(1 << 32)

    def _member(self, mount: Mount, name: str, who: str, module: str, arguments: list[str]) -> Member:
        user, root = self._ground.users[who], self._ground.root
        out, err = self._ground.area / f"{name}.out", self._ground.area / f"{name}.err"
        with out.open("wb") as stdout, err.open("wb") as stderr:
            process = subprocess.Popen(
                [interpreter(root), "-m", module, str(mount.path), *arguments],
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                cwd=root,
                env=environment(user) | {"PYTHONDONTWRITEBYTECODE": "1"},
                user=None if user is None else user.uid,
                group=None if user is None else user.gid,
                extra_groups=None if user is None else [],
            )
        return Member(name, process, out, err)

    def _watch(self, mount: Mount, sampler: Sampler, crew: list[Member], end: float) -> None:
        """Take samples, trouble the spawner and see that everybody is alive, until ``end``."""
        ours = {mount.pid, *(each.process.pid for each in crew)}
        sample_every = min(SAMPLE_EVERY, self._seconds / 20)
        next_sample = next_word = time.monotonic()
        next_trouble = next_sample + min(SPAWNER_LIVES[0], self._seconds / 4)
        while (now := time.monotonic()) < end:
            if mount.process.poll() is not None:
                self.broken.append(f"the daemon ended with {mount.process.returncode}:\n{log_of(mount.log)}")
                return
            if now >= next_sample:
                next_sample += sample_every
                with self._checked("a sample"):
                    sampler.take()
                reap_orphans(ours)
            if now >= next_word:
                next_word += WORD_EVERY
                trouble = [each.name for each in crew if each.err.stat().st_size]
                print(f"{(end - now) / 60:.0f} minutes left; {sampler.samples[-1:]}; in trouble: {trouble}", flush=True)
            if now >= next_trouble:
                next_trouble = now + min(self._random.uniform(*SPAWNER_LIVES), self._seconds / 4)
                self._trouble_spawner(mount)
            time.sleep(0.1)

    def _trouble_spawner(self, mount: Mount) -> None:
        try:
            spawner = child_called(mount.pid, "ktaskfs: spawner")
        except ValueError:  # the last one was killed, and no start has needed one since
            return
        if self._random.random() < 0.7:
            spawner.kill()
            self.counts["spawner killed"] += 1
        else:
            spawner.suspend()
            time.sleep(self._random.uniform(0, 1.5))
            spawner.resume()
            self.counts["spawner stopped"] += 1

    def _end(self, crew: list[Member], patience: float) -> None:
        """Wait for each process and add its counts; a process that does not end is killed, which is a failure."""
        deadline = time.monotonic() + patience
        for each in crew:
            try:
                each.process.wait(max(0.01, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                each.process.kill()
                each.process.wait()
                self.broken.append(f"{each.name} hung")
            errors = each.err.read_text(errors="replace")
            if errors or each.process.returncode:
                self.broken.append(f"{each.name}, status {each.process.returncode}:\n{errors}")
            if each.process.returncode == 0:
                told = json.loads(each.out.read_text())
                self.counts.update(told["counts"])
                self.counts["tasks started"] += told["tasks"]
                self.slowest = max(self.slowest, told["slowest"])
        crew.clear()

    def _report(self, sampler: Sampler, elapsed: float) -> str:
        counts = self.counts
        last = sampler.samples[-1]
        if last.tracebacks:
            first = sampler.first_traceback[:LONGEST]
            self.broken.append(f"{last.tracebacks:.0f} lines of the log have a Traceback, the first:\n{first}")
        states = ("done", "planned", "failed", "cancelled", "interrupted")
        others = [("what", "count")] + [(key, str(counts[key])) for key in sorted(counts) if not key.endswith(states)]
        return "\n".join(
            [
                f"# Soak: {elapsed / 60:.1f} minutes, seed {self._seed}\n",
                f"{counts['tasks started']} tasks, {counts['tasks started'] / elapsed:.1f} a second; the slowest "
                f"answer took {self.slowest:.2f} s; the daemon took {100 * last.cpu / elapsed:.0f} % of a processor.\n",
                "## Tasks by operation and outcome\n",
                tasks_table(counts, states),
                "## What else was done\n",
                table(others),
                f"## The daemon, in {len(sampler.samples)} samples (sizes in KiB)\n",
                samples_table(sampler.samples),
            ]
        )
