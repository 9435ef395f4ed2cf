"""Random kills: the daemon dies at any moment of some activity, and its successor must find everything, once."""

from __future__ import annotations

import os
import random
import signal
import time
import traceback
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from tests.faults.test_crashes import workers
from tests.soak.activity import PATTERN, TASKS_MAX, Activity, Running, Told, become
from tests.soak.client import ENDED, Client, crc32, expected, pages
from tests.soak.ground import Ground, reap_orphans
from tests.soak.samples import WORD_EVERY, log_of, table, tasks_table
from tests.support.daemon import Mount
from tests.support.forked import Died, run_forked
from tests.support.poll import until

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

WHO: Final = ("root", "a")
KILL_WITHIN: Final = 0.5
ADOPTED: Final = "adopted at work"
"""Seconds from the beginning of the activity to the death of the daemon, at most."""


@dataclass
class Known:
    """A task as its maker knows it.

    there:   whether a successful request made it (True), removed it (False), or one without an answer may have (None).
    started: the same of the request that set it to work.
    late:    whether the answer to its start came so late that it may have been starting when the daemon died.
    asked:   the last verb that was asked for with success, and whether one without an answer came after it.
    """

    who: str
    operation: str
    path: Path
    size: int
    there: bool | None = None
    started: bool | None = False
    late: bool = False
    asked: str = ""
    doubt: bool = False


class Kills:
    """Kills and mounts again for ``seconds``, and until ``adoptions`` tasks were adopted at work.

    ``meanwhile`` is called with the state directory while there is no daemon.
    """

    def __init__(
        self,
        ground: Ground,
        seconds: float,
        seed: int,
        adoptions: int = 0,
        meanwhile: Callable[[Path], None] = lambda state: None,
    ) -> None:
        self._ground = ground
        self._seconds = seconds
        self._adoptions = adoptions
        self._seed = seed
        self._random = random.Random(seed)
        self._meanwhile = meanwhile
        self._known: dict[str, Known] = {}
        self.broken: list[str] = []
        self.counts: Counter[str] = Counter()
        self._point = ground.area / "mount"
        self._state = ground.area / "state"
        self._log = ground.area / "log"

    def run(self) -> str:
        """Kill to the end; the report. Stops at the first thing that does not hold."""
        self._point.mkdir()
        self._state.mkdir()
        begin = next_word = time.monotonic()
        mount = self._mount()
        try:
            while (now := time.monotonic()) < begin + self._seconds or self.counts[ADOPTED] < self._adoptions:
                if now >= next_word:
                    next_word += WORD_EVERY
                    print(f"{(now - begin) / 60:.0f} minutes; {dict(self.counts)}", flush=True)
                told = self._live_and_die(mount)
                reap_orphans(())
                self._meanwhile(self._state)
                mount = self._mount()
                for who, each in told.items():
                    assert not each.broken, f"{who}: {each.broken}"
                    self._learn(who, each)
                self._check(mount)
                self._finish_some(mount, TASKS_MAX // 2)
            self._finish_some(mount, 0)
        except (AssertionError, OSError):
            self.broken.append(f"{traceback.format_exc()}\nthe log:\n{log_of(self._log, 60)}")
            self._put_down(mount)
        except BaseException:
            self._put_down(mount)
            raise
        try:
            mount.close()
        except AssertionError as error:
            self.broken.append(str(error))
        return self._report(time.monotonic() - begin)

    def _mount(self) -> Mount:
        """Over the dead mount, which the daemon itself clears away."""
        self._log = self._ground.area / f"log{self.counts['daemon killed']}"
        return Mount(self._point, statedir=self._state, log=self._log, options="mode=0666")

    def _put_down(self, mount: Mount) -> None:
        """End every worker, so that nothing outlives the run."""
        mount.kill()
        for pid in workers().values():
            os.kill(pid, signal.SIGKILL)
        until(lambda: not workers(), "the workers have ended")
        reap_orphans(())

    # ---- a life of the daemon ----

    def _live_and_die(self, mount: Mount) -> dict[str, Told]:
        self.counts["daemon killed"] += 1
        activities = {who: self._begin(mount, who) for who in WHO}
        time.sleep(self._random.uniform(0, KILL_WITHIN))
        mount.process.kill()
        mount.process.wait()
        alive = workers()
        self.counts["workers at work at a kill"] += len(alive)
        for pid in alive.values():
            if self._random.random() < 0.1:
                os.kill(pid, signal.SIGKILL)
                self.counts["workers killed as well"] += 1
        told = {who: each.hear() for who, each in activities.items()}
        log = mount.log.read_text()
        assert "Traceback" not in log, log
        mount.log.unlink()
        return told

    def _begin(self, mount: Mount, who: str) -> Running:
        names = [name for name, known in self._known.items() if known.who == who]
        directory, seed = self._ground.area / "tmpfs" / who, self._random.randrange(1 << 32)
        activity = Activity(mount.path, directory, f"{who}{self.counts['daemon killed']}", seed, names)
        return Running(activity, self._ground.users[who])

    # ---- checks ----

    def _learn(self, who: str, told: Told) -> None:
        """Take in what an activity asked and was answered; the last request may have no answer."""
        for asked, answer in zip(told.lines[::2], [*told.lines[1::2], {}], strict=False):
            got = answer.get("answer", "")
            name, verb = asked["task"], asked["verb"]
            self.counts["requests answered" if got else "requests without an answer"] += 1
            if got not in ("ok", ""):
                self.counts[f"refused {got}"] += 1
                # A checksum that was broken off cannot do the rest only.
                whole = verb == "resume" and self._known[name].operation == "checksum"
                assert got == "EBUSY" or (got == "EOPNOTSUPP" and whole), f"{verb} of {name}: {got}"
                continue
            sure = True if got else None
            if verb in ("run", "mkdir"):
                path = self._ground.area / "tmpfs" / who / name
                self._known[name] = Known(who, asked["operation"], path, int(asked["size"]), there=sure)
                self.counts["tasks"] += 1
            known = self._known[name]
            if verb in ("run", "start"):
                known.started, known.late = sure, bool(answer.get("late"))
            elif verb == "rmdir":
                known.there = False if got else None
            elif got and verb != "rate":
                known.asked, known.doubt = verb, False
            elif not got:
                known.doubt = True

    def _check(self, mount: Mount) -> None:
        """Check that the successor has found all tasks."""
        there = set(os.listdir(mount.path / "tasks")) - {"control"}
        assert there <= self._known.keys(), f"nobody asked for {there - self._known.keys()}"
        for name, known in list(self._known.items()):
            if known.there and known.late and name not in there:
                self._lost_late(name, known)
            elif known.there is not None:
                assert (name in there) is known.there, f"{name} is {'' if name in there else 'not '}there: {known}"
            elif name in there:
                self.counts["in doubt, and there"] += 1
            else:
                self.counts["in doubt, and not there"] += 1
            if name in there:
                known.there = True
                self._check_task(mount, name, known)
            else:
                del self._known[name]
                known.path.unlink(missing_ok=True)
        pids = {_stat(mount, name)["pid"] for name in there}
        until(lambda: all(str(pid) in pids for pid in workers().values()), "a worker that no record knows has ended")
        assert not list(self._state.glob("*.bad")), "a record was set aside"

    def _lost_late(self, name: str, known: Known) -> None:
        """Nothing is known of a start that was answered with success. The run goes on: this hides no other loss."""
        self.counts["lost while starting"] += 1
        self.broken.append(f"the start of {name} was answered, and is lost: {known}")

    def _check_task(self, mount: Mount, name: str, known: Known) -> None:
        stat = _stat(mount, name)
        state = stat["state"]
        assert state in {"new", "running", "paused", "done", "cancelled", "interrupted"}, f"{name}: {stat}"
        assert int(stat["done"]) <= int(stat["total"]), f"{name}: {stat}"
        if known.started and known.late and state == "new":
            self._lost_late(name, known)
        elif known.started is not None:
            assert (state != "new") is known.started, f"{name} is {state}: {known}"
        known.started, known.late = state != "new", False
        if known.asked == "pause" and not known.doubt:
            assert state in ENDED | {"paused"}, f"{name} was paused and is {state}"
        if state in ("running", "paused"):
            self.counts[ADOPTED] += 1
            assert stat["pid"] != "0", f"{name}: {stat}"
        if known.asked in ("cancel", "kill") and not known.doubt:
            until(lambda: _stat(mount, name)["state"] in ENDED, f"{name}, that was told to {known.asked}, has ended")
        known.doubt, known.asked = False, ""
        self.counts["found again"] += 1

    # ---- to the end ----

    def _finish_some(self, mount: Mount, keep: int) -> None:
        """Finish the oldest tasks of each user except ``keep`` of them, and check all of their work."""
        for who in WHO:
            mine = [name for name, known in self._known.items() if known.who == who]
            for name in mine[: max(0, len(mine) - keep)]:
                self._finish(mount, name, self._known.pop(name))

    def _finish(self, mount: Mount, name: str, known: Known) -> None:
        def finish() -> dict[str, int]:
            become(self._ground.users[known.who])
            client = Client(mount.path, name, 0)
            _bring_to_end(client, name, known)
            return client.counts

        try:
            self.counts.update(run_forked(finish))
        except Died as died:
            raise AssertionError(f"{name}, {known}: {died}") from died

    def _report(self, elapsed: float) -> str:
        counts = self.counts
        states = ("done", "cancelled", "interrupted")
        others = [(key, str(counts[key])) for key in sorted(counts) if not key.endswith(states)]
        return "\n".join(
            [
                f"# Random kills: {elapsed / 60:.1f} minutes, seed {self._seed}\n",
                f"{counts['daemon killed']} kills of the daemon, {counts['tasks']} tasks; {counts['adopted at work']} "
                f"times a task was adopted at work; lost: {'nothing' if not self.broken else 'see below'}.\n",
                "## Ends that were looked at, by operation\n",
                tasks_table(counts, states),
                "## What else was done\n",
                table([("what", "count"), *others]),
            ]
        )


def _stat(mount: Mount, task: str) -> dict[str, str]:
    return dict(line.split(" ", 1) for line in (mount.path / f"tasks/{task}/stat").read_text().splitlines())


def _bring_to_end(client: Client, name: str, known: Known) -> None:
    """As the task's owner, bring it to ``done`` from any state; every unit was then done once. Removes it, and the
    file."""
    state = client.stat(name)["state"]
    marks: tuple[int, ...] = ()
    if state != "new":
        assert client.write(f"tasks/{name}/rate_max", "max") in ("ok", "EBUSY")  # it may be done by now
        if state == "paused":
            assert client.write(f"tasks/{name}/control", "resume") == "ok"
        state = client.wait(name)
        if state in ("cancelled", "interrupted"):
            whole = known.operation == "checksum"
            if whole and client.stat(name)["done"] != "0":
                client.refused(client.write(f"tasks/{name}/control", "resume"), "EOPNOTSUPP")
            else:
                marks = client.finish_rest(name, known.path, known.size, known.operation == "fill")
                state = "done"
        if state == "done":
            assert client.read(f"tasks/{name}/progress") == f"{known.size} / {known.size}\n"
            assert pages(known.path) == known.size
            content = known.path.read_bytes()
            pattern = PATTERN if known.operation == "fill" else "00"
            assert content == expected(pattern, known.size, marks), "what was done was done again, or not all"
            if known.operation == "checksum":
                assert client.read(f"tasks/{name}/result") == crc32(known.path)
    os.rmdir(client.mount / "tasks" / name)
    known.path.unlink(missing_ok=True)
