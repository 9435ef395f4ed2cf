"""What the user of the long run does with orders themselves: the queue, names used again, plans, streams."""

from __future__ import annotations

import os
import select
from typing import TYPE_CHECKING, Final

from tests.soak.actor import Actor, uses
from tests.soak.client import ENDED, PATIENCE, SpawnerDied, Transitions, crc32, pages
from tests.support.poll import until

if TYPE_CHECKING:
    from collections.abc import Callable

QUEUED: Final = 12
"""Tasks in one write: more than a user may have at work."""


class Orders(Actor):
    """Orders that wait, replace, only ask, or are followed."""

    def of_orders(self) -> list[Callable[[], None]]:
        """The scenarios of this class."""
        return [self.queue_up, self.use_a_name_again, self.ask_for_a_plan, self.follow]

    def refused_soon(self, spec: str, *errors: str) -> None:
        """A start that is refused, by the write or soon after it; raises SpawnerDied."""
        name = self.new_name()
        got = self.write("tasks/control", f"{spec} name={name}")
        if got == "EIO":
            raise SpawnerDied
        if got == "ok":  # answered before the target was looked at, on a machine that has much to do
            state = self.wait(name)
            assert state == "failed", f"{state}: {spec}"
            got = self.read(f"tasks/{name}/error").split()[0]
        self.refused(got, *errors)

    @uses("ranges/checksum")
    def queue_up(self) -> None:
        """More tasks than the limit allows, in one write: some wait, one of these is cancelled, all others are done."""
        with self.allocated() as (path, size, _):
            names = [self.new_name() for _ in range(QUEUED)]
            line = f"checksum path={path} chunk=4096 rate_max={2 * size} max_threads=1 queue=1"
            self.started(self.write("tasks/control", "\n".join(f"{line} name={name}" for name in names)), *names)
            self.words.add("checksum")
            assert self.read(f"tasks/{names[-1]}/state").strip() in {"queued", "starting", "running", *ENDED}
            cancelled = names[-2]
            waited = self.stat(cancelled)["state"] == "queued"
            got = self.write(f"tasks/{cancelled}/control", "cancel")
            assert got in ("ok", "EBUSY"), got
            self.counts["cancelled in the queue"] += waited
            for name in names:
                if self.stat(name)["state"] not in ENDED:
                    self.write(f"tasks/{name}/rate_max", "max")
            for name in names:
                state = self.wait(name)
                assert state == "done" or (name == cancelled and state == "cancelled"), self.read(f"tasks/{name}/error")
                if state == "done":
                    assert self.read(f"tasks/{name}/result") == crc32(path)
                self.forget(name)

    @uses("ranges/checksum")
    def use_a_name_again(self) -> None:
        """replace=1 takes the name of a task that has ended, and of no other."""
        with self.slow() as (name, path, _, _):
            spec = f"checksum path={path} replace=1 name={name}"
            if (got := self.write("tasks/control", spec)) != "ok":  # unless it has ended in the meantime
                self.refused(got, "EEXIST")
                self.write(f"tasks/{name}/rate_max", "max")
                self.end(name)
                self.started(self.write("tasks/control", spec), name)
            self.words.add("checksum")
            assert self.end(name) == crc32(path)

    @uses("ranges/fallocate", "ranges/fill")
    def ask_for_a_plan(self) -> None:
        """plan=1 says what would be done, and does nothing."""
        with self.place() as place, self.file(place) as (path, size):
            text = self.run(f"fallocate path={path} length={size} plan=1", "planned")
            assert f"total {size}\n" in text, text
            assert not path.exists()
            assert self.run(f"fallocate path={path} length={size}") == ""
            before = path.read_bytes()
            assert f"total {size}\n" in self.run(f"fill path={path} plan=1", "planned")
            assert path.read_bytes() == before
            assert pages(path) == size

    @uses("ranges/fill")
    def follow(self) -> None:
        """``events`` tells of each change of an own task, in the order of its states, and poll(2) of its progress."""
        events = os.open(self.mount / "events", os.O_RDONLY)
        try:
            with self.slow() as (name, _, _, _):
                file = os.open(self.mount / f"tasks/{name}/progress", os.O_RDONLY)
                try:
                    done, total = os.pread(file, 4096, 0).split(b" / ")
                    if int(done) < int(total) and self.stat(name)["state"] not in ENDED:
                        poll = select.poll()
                        poll.register(file, select.POLLPRI)
                        assert poll.poll(PATIENCE * 1000), "nothing is told of the progress"
                finally:
                    os.close(file)
                self.write(f"tasks/{name}/rate_max", "max")
                self.end(name)
                transitions, states = Transitions(), [""]

                def told() -> bool:
                    with self.timed():
                        text = os.read(events, 1 << 20).decode()
                    transitions.hear(text)
                    words = [line.split() for line in text.splitlines() if line]
                    assert not any(word[1] == "-" for word in words), "changes were lost"
                    states.extend(word[3] for word in words if word[1] == name)
                    return states[-1] == "done"

                until(told, "events tells of the end", deadline=2 * PATIENCE)
                assert states[1:] == ["new", "starting", "running", "done"], states
        finally:
            os.close(events)
