"""One process of the long run: a user who does everything that ktaskfs can do, and checks the results.

    python -m tests.soak.scenarios MOUNT AREA WHO NUMBER SEED SECONDS PACE

Prints its counts as JSON. A broken invariant is a traceback on stderr and in ``broken``; the process then continues
with another scenario, on other files.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from tests.soak.actor import PAGE_SIZE, WHO, Place, uses
from tests.soak.client import ENDED, SpawnerDied, crc32, errno_name, expected, mark, pages
from tests.soak.processes import Processes
from tests.soak.trees import Trees
from tests.support.poll import until

if TYPE_CHECKING:
    from collections.abc import Callable


class Player(Trees, Processes):
    """Each scenario makes new files and tasks, and leaves no file."""

    def scenarios(self) -> list[Callable[[], None]]:
        return [
            self.allocate_and_free,
            self.fill_and_verify,
            self.clear_and_survey,
            self.copy_and_compare,
            self.interrupt_and_resume,
            self.interrupt_and_resume,
            self.pause_and_cancel,
            self.undo,
            self.stop_the_worker,
            self.make_by_hand,
            self.several_at_once,
            self.tune,
            self.refuse,
            self.pry if self.who != "root" else self.reserve if self.first else self.refuse,
            *self.of_trees(),
            *self.of_processes(),
            *self.of_orders(),
        ]

    @uses("ranges/fallocate", "ranges/checksum", "ranges/free")
    def allocate_and_free(self) -> None:
        with self.allocated() as (path, size, place):
            assert self.run(f"checksum path={path}") == crc32(path)
            assert not any(path.read_bytes())
            half = size // 2 // place.page * place.page
            if half:
                self.run(f"free path={path} offset={half}")
                assert (pages(path), path.stat().st_size) == (half, size)
            self.run(f"free path={path} unlink=1")
            assert not path.exists()

    @uses("ranges/fallocate", "ranges/fill", "ranges/verify", "ranges/checksum")
    def fill_and_verify(self) -> None:
        with self.allocated() as (path, size, _):
            pattern = self.pattern()
            assert self.run(f"fill path={path} pattern={pattern}{self.limits()}") == f"written {size}\n"
            good = [f"compared {size}", "holes 0", "differing 0"]
            assert self.run(f"verify path={path} pattern={pattern}").splitlines()[:3] == good
            assert path.read_bytes() == expected(pattern, size)
            assert self.run(f"checksum path={path}{self.limits()}") == crc32(path)
            wrong = self.random.randrange(size)
            mark(path, wrong)
            lines = self.run(f"verify path={path} pattern={pattern}", "failed").splitlines()
            assert lines[2] == "differing 1"
            assert lines[-1].startswith(f"{wrong} 1 ")

    @uses("ranges/fill", "ranges/clear", "ranges/free", "ranges/survey")
    def clear_and_survey(self) -> None:
        with self.allocated() as (path, size, place):
            self.run(f"fill path={path} pattern=ff")
            self.run(f"clear path={path}{self.limits()}")
            assert not any(path.read_bytes())
            self.run(f"free path={path} length={place.page}")
            counts = dict(line.split() for line in self.run(f"survey path={path}").splitlines() if line.count(" ") == 1)
            found = {key: int(counts[key]) for key in ("page_size", "pages", "present", "holes")}
            total = size // place.page
            assert found == {"page_size": place.page, "pages": total, "present": total - 1, "holes": 1}

    @uses("ranges/copy", "ranges/compare")
    def copy_and_compare(self) -> None:
        with self.allocated() as (source, size, _), self.file(Place(self.directory, 4096), ".copy") as (path, _):
            self.run(f"fill path={source} pattern={self.pattern()}")
            assert self.run(f"copy source={source} path={path} digest=crc32{self.limits()}") == crc32(source)
            assert path.read_bytes() == source.read_bytes()
            assert self.run(f"compare source={source} path={path}") == "equal\n"
            wrong = self.random.randrange(size)
            mark(path, wrong)
            assert self.run(f"compare source={source} path={path}") == f"first {wrong}\ndiffering 1\n"

    def interrupt_and_resume(self) -> None:
        operation = self.random.choice(["fill", "fallocate"])
        with self.slow(operation) as (name, path, size, pattern):
            pid = int(self.stat(name)["pid"])
            how = self.random.choice(["kill", "SIGKILL", "SIGSEGV", "SIGTERM"])
            if how == "kill":
                got = self.write(f"tasks/{name}/control", "kill")
                assert got in ("ok", "EBUSY"), got
            elif pid:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.Signals[how])
            state = self.wait(name)
            assert state in ("done", "interrupted"), (how, state)
            self.counts[f"worker ended by {how}"] += state != "done"
            marks: tuple[int, ...] = ()
            if state != "done":
                marks = self.finish_rest(name, path, size, operation == "fill")
            assert pages(path) == size
            if operation == "fill":
                assert path.read_bytes() == expected(pattern, size, marks), "what was done was done again, or not all"

    def pause_and_cancel(self) -> None:
        with self.slow() as (name, path, size, pattern):
            if self.write(f"tasks/{name}/control", "pause") == "ok":
                assert self.stat(name)["state"] in ("paused", "done")
                assert self.write(f"tasks/{name}/control", "resume") in ("ok", "EBUSY")
                self.counts["paused"] += 1
            self.write(f"tasks/{name}/control", "cancel")
            state = self.wait(name)
            assert state in ("done", "cancelled"), state
            if state == "cancelled":
                self.finish_rest(name, path, size)
            assert path.read_bytes() == expected(pattern, size)

    def undo(self) -> None:
        with self.slow("fallocate", " undo=1") as (name, path, size, _):
            self.write(f"tasks/{name}/control", "cancel")
            state = self.wait(name)
            assert state in ("done", "cancelled"), state
            left = pages(path) if path.exists() else 0
            assert left == (size if state == "done" else 0), "what was done was not taken back"
            self.counts["undone"] += state == "cancelled"

    def stop_the_worker(self) -> None:
        with self.slow() as (name, path, size, pattern):
            pid = int(self.stat(name)["pid"])
            if pid:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGSTOP)
                    until(lambda: self.shows_stopped(name), "status says that the worker is stopped")
                    os.kill(pid, signal.SIGCONT)
                    self.counts["worker stopped"] += 1
            self.write(f"tasks/{name}/rate_max", "max")
            self.end(name)
            assert path.read_bytes() == expected(pattern, size)

    def shows_stopped(self, task: str) -> bool:
        return "stopped" in self.read(f"tasks/{task}/status") or self.stat(task)["state"] in ENDED

    def make_by_hand(self) -> None:
        name = self.new_name()
        with self.place() as place, self.file(place) as (path, size):
            self.make(name)
            self.refused(self.write(f"tasks/{name}/control", "start"), "EINVAL")
            self.refused(self.write("tasks/control", f"clear path={path} name={name}"), "EEXIST")
            if self.random.random() < 0.7:
                for key, value in (("op", "fallocate"), ("path", str(path)), ("length", str(size))):
                    self.put(f"tasks/{name}/{key}", value)
                assert self.read(f"tasks/{name}/path") == f"{path}\n"
                self.started(self.write(f"tasks/{name}/control", "start"), name)
                self.end(name)
                assert pages(path) == size
            os.rmdir(self.mount / "tasks" / name)

    def several_at_once(self) -> None:
        with self.allocated() as (path, size, _):
            names = [self.new_name() for _ in range(3)]
            lines = [json.dumps({"op": "checksum", "path": str(path), "length": size, "name": name}) for name in names]
            self.refused(self.write("tasks/control", "\n".join([*lines, "checksum path"])), "EINVAL")
            assert not any((self.mount / "tasks" / name).exists() for name in names)
            self.started(self.write("tasks/control", "\n".join(lines)), *names)
            for name in names:
                assert self.end(name) == crc32(path)
                self.forget(name)

    def tune(self) -> None:
        with self.slow() as (name, path, size, pattern):
            if self.write(f"tasks/{name}/control", "pause") != "ok":
                self.counts["ended before it was tuned"] += 1
                return
            for key, value in (("max_threads", "1"), ("max_threads", "3"), ("nice", "12"), ("rate_max", "64K")):
                self.put(f"tasks/{name}/{key}", value)
                assert self.read(f"tasks/{name}/{key}") == f"{value}\n"
            self.refused(self.write(f"tasks/{name}/nice", "x"), "EINVAL")
            if self.who == "root":
                values = {"max_threads": (2, 4), "cpu_percent": (50, 80), "nice": (10, 19), "load_bal_shift": (0, 2)}
                key, choice = self.random.choice(sorted(values.items()))
                assert self.write(f"debug/ktask_{key}", str(self.random.choice(choice))) == "ok"
                self.counts["tunable set"] += 1
            else:
                self.refused(self.write("debug/ktask_nice", "3"), "EACCES")
            self.put(f"tasks/{name}/rate_max", "max")
            self.put(f"tasks/{name}/control", "resume")
            self.end(name)
            assert path.read_bytes() == expected(pattern, size)

    def refuse(self) -> None:
        with self.allocated() as (path, _, place):
            bad = [
                (" ", "EINVAL"),
                ("frobnicate path=/x", "EINVAL"),
                (f"fallocate path={path} length=12q", "EINVAL"),
                (f"clear path={path} offset=-1", "EINVAL"),
                (f"clear path={path} offset=1E", "EINVAL"),
                (f"fill path={path} undo=1", "EOPNOTSUPP"),
                (f"fill path={path} pattern=xyz", "EINVAL"),
                (f"clear path={path}.none", "ENOENT"),
                (f"fallocate path={place.directory} length={place.page}", "EISDIR"),
                (f"fallocate path={path}.new length=1T", "ENOMEM" if place.page == PAGE_SIZE else "ENOSPC"),
                ('{"op": "clear", "path": [', "EINVAL"),
                ("clear 'path", "EINVAL"),
                ("x" * 70000, "E2BIG"),
            ]
            for spec, answer in self.random.sample(bad, 5):
                name = self.new_name()
                got = self.write("tasks/control", f"{spec} name={name}" if "path=" in spec else spec)
                if got == "EIO":
                    raise SpawnerDied
                self.refused(self.late_error(name) if got == "ok" else got, answer)
                assert self.read("info/last_cmd_status")
            assert not Path(f"{path}.new").exists()

    def late_error(self, task: str) -> str:
        """The errno of a start whose write was answered before the target was looked at: the machine has much to do."""
        state = self.wait(task)
        assert state == "failed", state
        return self.read(f"tasks/{task}/error").split()[0]

    def pry(self) -> None:
        """An ordinary user tries others' files and tasks, and those of root."""
        other = self.random.choice([who for who in WHO if who != self.who])
        theirs = self.area / "tmpfs" / other / "own"
        operation = self.random.choice(["checksum", "clear", "free", "fallocate length=1M"])
        for spec in (f"{operation} path={theirs}", "reserve size=2M pages=0"):
            task = self.new_name()
            got = self.write("tasks/control", f"{spec} name={task}")
            if got == "EIO":
                raise SpawnerDied
            self.refused(self.late_error(task) if got == "ok" else got, "EACCES")
        names = [name for name in os.listdir(self.mount / "tasks") if name.startswith(other)]
        for name in self.random.sample(names, min(3, len(names))):
            for file in ("state", "result", "path", "control", "wait"):
                try:
                    os.close(os.open(self.mount / "tasks" / name / file, os.O_RDONLY | os.O_NONBLOCK))
                except OSError as error:
                    self.refused(errno_name(error), "EACCES", "ENOENT", "ENODEV")
                else:
                    raise AssertionError(f"{self.who} could open {file} of {name}")
            self.refused(self.write(f"tasks/{name}/control", "cancel"), "EACCES", "ENOENT", "ENODEV")

    @uses("pools/reserve")
    def reserve(self) -> None:
        """The pool grows by two pages and shrinks again, while others use it."""
        with self.place() as place:
            if place.page != PAGE_SIZE:
                return
            pool = Path("/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages")
            before = int(pool.read_text())
            for wanted in (before + 2, before):
                rows = self.run(f"reserve size=2M pages={wanted}").splitlines()
                assert int(rows[-1].split()[3]) == wanted == int(pool.read_text())


def main() -> None:
    mount, area, who, number, seed, seconds, pace = sys.argv[1:]
    actor = Player(Path(mount), Path(area), who, int(number), int(seed))
    actor.work(float(seconds), float(pace))
    print(json.dumps({"broken": actor.broken, "slowest": actor.slowest, "tasks": actor.tasks, "counts": actor.counts}))


if __name__ == "__main__":
    main()
