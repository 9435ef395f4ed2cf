"""What the user of the long run does with the memory of a process, a child of its own, which may die meanwhile."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import mmap
import os
import signal
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from tests.soak.actor import PAGE_SIZE, uses
from tests.soak.client import PATIENCE, errno_name, expected
from tests.soak.orders import Orders
from tests.soak.trees import counts
from tests.support.poll import until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PRIVATE: Final = 4 * PAGE_SIZE
"""Bytes of anonymous memory of a child."""
SHARED: Final = 1 << 18
"""Bytes of its memfd."""
PATTERN: Final = "a5000b"


@dataclass(frozen=True)
class Child:
    """A process with two mappings: addresses of the private and of the shared one, and its end of a conversation."""

    pid: int
    private: int
    shared: int
    file: Path
    """The memfd behind the shared one."""
    _ask: int
    _answers: int

    def digest(self) -> str:
        """crc32 of its private memory, as the child sees it."""
        os.write(self._ask, b"?")
        return os.read(self._answers, 64).decode()

    def kill(self) -> None:
        """It is gone: no zombie is left either."""
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)


class Processes(Orders):
    """Surveys of processes, and work on what they have mapped."""

    def of_processes(self) -> list[Callable[[], None]]:
        """The scenarios of this class."""
        return [
            self.survey_a_process,
            self.collapse_a_process,
            self.migrate_a_process,
            self.collapse_and_migrate_a_file,
            self.work_in_a_process,
            self.process_that_dies,
            self.look_at_holders,
        ]

    @contextlib.contextmanager
    def child(self) -> Iterator[Child]:
        """A new one, which is dead at the end."""
        asked, ask = os.pipe()
        answers, answer = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                os.close(ask)
                _live(asked, answer)
            finally:
                os._exit(1)
        os.close(asked)
        os.close(answer)
        try:
            private, shared, fd = os.read(answers, 64).split()
            yield Child(pid, int(private), int(shared), Path(f"/proc/{pid}/fd/{int(fd)}"), ask, answers)
        finally:
            with contextlib.suppress(ChildProcessError):  # where it was killed before
                os.waitpid(pid, os.WNOHANG)
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
            os.close(ask)
            os.close(answers)

    @uses("processes/survey")
    def survey_a_process(self) -> None:
        with self.child() as child:
            text = self.run(f"survey pid={child.pid} mapping={child.private:#x}")
            pages = PRIVATE // mmap.PAGESIZE
            found = counts(text, "page_size", "pages", "mappings", "anonymous", "swapped")
            assert found["pages"] >= pages, text
            assert found["anonymous"] + found["swapped"] >= pages, text
            assert found["mappings"] == 1, text
            assert counts(self.run(f"survey pid={child.pid}"), "mappings")["mappings"] > 5

    @uses("processes/collapse")
    def collapse_a_process(self) -> None:
        """Root may; others lack the capability."""
        with self.child() as child:
            before, spec = child.digest(), f"collapse pid={child.pid} mapping={child.private:#x}"
            if self.who != "root":
                self.refused_soon(spec, "EPERM")
                self.words.add("collapse")
            else:
                found = counts(self.run(spec), "mappings", "collapsed", "left")
                assert found["mappings"] == 1
                assert found["collapsed"] + found["left"] >= PRIVATE
                self.counts["KiB of processes collapsed"] += found["collapsed"] >> 10
            assert child.digest() == before

    @uses("processes/migrate")
    def migrate_a_process(self) -> None:
        with self.child() as child:
            before = child.digest()
            found = counts(self.run(f"migrate pid={child.pid} mapping={child.private:#x} nodes=0"), "there", "moved")
            assert found["there"] + found["moved"] >= PRIVATE // mmap.PAGESIZE, found
            assert child.digest() == before

    @uses("ranges/migrate", "ranges/collapse")
    def collapse_and_migrate_a_file(self) -> None:
        path = self.area / "collapsible" / self.who / self.new_name()
        content = self.random.randbytes(2 * PAGE_SIZE)
        try:
            path.write_bytes(content)
            found = counts(self.run(f"collapse path={path}"), "collapsed", "already", "holes", "left")
            assert sum(found.values()) == len(content), found
            self.counts["KiB of files collapsed"] += found["collapsed"] >> 10
            found = counts(self.run(f"migrate path={path} nodes=0"), "moved", "there", "failed")
            assert sum(found.values()) == len(content) // mmap.PAGESIZE, found
            assert path.read_bytes() == content
        finally:
            path.unlink()

    @uses("ranges/verify", "ranges/fill", "ranges/checksum", "ranges/clear", "ranges/survey")
    def work_in_a_process(self) -> None:
        """On the memory that a child shares, named by the process and an address."""
        with self.child() as child:
            where = f"pid={child.pid} mapping={child.shared + self.random.randrange(SHARED):#x}"
            assert counts(self.run(f"verify {where} pattern={PATTERN}"), "compared", "differing") == {
                "compared": SHARED,
                "differing": 0,
            }
            pattern = self.pattern()
            assert self.run(f"fill {where} pattern={pattern}{self.limits()}") == f"written {SHARED}\n"
            content = child.file.read_bytes()
            assert content == expected(pattern, SHARED)
            assert self.run(f"checksum {where}") == f"crc32 {zlib.crc32(content):08x}\n"
            self.run(f"clear {where}{self.limits()}")
            assert not any(child.file.read_bytes())
            found = counts(self.run(f"survey path={child.file}"), "pages", "present")
            assert found == {"pages": SHARED // mmap.PAGESIZE, "present": SHARED // mmap.PAGESIZE}

    @uses("ranges/fill", "processes/survey")
    def process_that_dies(self) -> None:
        """The memory stays as long as the task works on it; a survey has nothing left to look at."""
        with self.child() as child:
            where = f"pid={child.pid} mapping={child.shared:#x}"
            filling = self.start(f"fill {where} chunk=4096 rate_max={SHARED}")
            looking = self.start(f"survey pid={child.pid} chunk=16 rate_max=20000")
            until(lambda: self.begun(filling), "something is done", deadline=2 * PATIENCE)
            kept = os.open(child.file, os.O_RDONLY)  # not before: a start may still look for others who have it open
            try:
                child.kill()
                self.end(filling)
                assert not {0} >= set(os.pread(kept, SHARED, 0)[-4096:]), "the rest was not filled"
            finally:
                os.close(kept)
            state = self.wait(looking)
            if state == "failed":
                assert self.read(f"tasks/{looking}/error").split()[0] == "ESRCH"
            else:
                assert state == "done", state
            self.counts[f"survey of a process that died, {state}"] += 1
            self.forget(filling)
            self.forget(looking)
            self.refused_soon(f"survey pid={child.pid} mapping={child.private:#x}", "ESRCH")

    def look_at_holders(self) -> None:
        """info/holders names the huge pages of a memfd of this process."""
        with self.place() as place:
            if place.page != PAGE_SIZE:
                return
            count = self.random.randint(1, 2)
            name = f"soak-{self.new_name()}"
            fd = os.memfd_create(name, os.MFD_HUGETLB | os.MFD_HUGE_2MB)
            try:
                os.posix_fallocate(fd, 0, count * PAGE_SIZE)
                (held,) = self.holdings_of(name)
                assert (held["kind"], held["size"], held["used"]) == ("memfd", PAGE_SIZE, count), held
                assert [each["pid"] for each in held["processes"]] == [os.getpid()], held
            finally:
                os.close(fd)
            self.counts["holders found"] += 1

    def holdings_of(self, name: str) -> list[dict[str, Any]]:
        """Those with ``name`` in the path. A scan of the same user's is shown for a second, and may be older."""
        found: list[dict[str, Any]] = []

        def is_there() -> bool:
            found[:] = [each for each in self.holdings() if name in (each["path"] or "")]
            return bool(found)

        until(is_there, f"info/holders names {name}", deadline=2 * PATIENCE)
        return found

    def holdings(self) -> list[dict[str, Any]]:
        """Those of info/holders.json, when the scan is complete."""
        found: list[dict[str, Any]] = []

        def is_told() -> bool:
            try:
                found[:] = json.loads(self.read("info/holders.json"))["holdings"]
            except OSError as error:
                if error.errno not in (errno.ETIMEDOUT, errno.EAGAIN):
                    raise
                self.counts[f"holders: {errno_name(error)}"] += 1
                return False
            return True

        until(is_told, "info/holders.json answers", deadline=2 * PATIENCE)
        return found


def _live(asked: int, answer: int) -> None:
    """The life of a child: says where its memory is, and then what is in it, until nobody asks any more."""
    private = mmap.mmap(-1, PRIVATE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    private.write(os.urandom(1 << 16) * (PRIVATE >> 16))
    fd = os.memfd_create("soak", os.MFD_CLOEXEC)
    os.truncate(fd, SHARED)
    shared = mmap.mmap(fd, SHARED, mmap.MAP_SHARED)
    shared.write(bytes(expected(PATTERN, SHARED)))
    places = [ctypes.addressof(ctypes.c_char.from_buffer(each)) for each in (private, shared)]
    os.write(answer, f"{places[0]} {places[1]} {fd}".encode())
    while os.read(asked, 1):
        os.write(answer, f"{zlib.crc32(private):08x}".encode())
