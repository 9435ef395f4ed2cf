"""Workers that lie: a worker is its caller's process, and may say and write anything on its channel and its page."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest
import trio

from ktaskfs.errors import KtaskfsError
from ktaskfs.progress import Shape
from ktaskfs.progress.layout import RANGE, REPORT, WORD
from ktaskfs.tasks.new_worker import NewWorker, WorkerMaker
from ktaskfs.tasks.task import ENDED, State
from ktaskfs.tasks.worker_handle import WorkerHandle
from ktaskfs.worker.protocol import MESSAGE_MAX
from tests.support.poll import DEADLINE
from tests.support.poll import until as wait_until
from tests.support.slow import start_slow
from tests.tasks.conftest import house, memory, workers
from tests.tasks.house import open_files, until

if TYPE_CHECKING:
    from collections.abc import Callable

    from ktaskfs.host.credentials import CallerProcess, Identity
    from ktaskfs.tasks.task import Task
    from tests.support.daemon import Mount
    from tests.tasks.house import House

__all__ = ["house", "memory", "workers"]

BASELINE = {"files": {"path": [1, 2, 3]}, "end": 0, "size": 0, "total": 5, "tree": 0}


def ready(**fields: Any) -> bytes:
    return json.dumps(["Ready", {"total": 5, "baseline": BASELINE, "defaults": {}, **fields}]).encode()


def baseline(**fields: Any) -> bytes:
    return ready(baseline={**BASELINE, **fields})


LIES = {
    "nothing": b"\0",
    "binary": bytes(range(256)),
    "go": b"g",
    "half of a message": ready()[:-3],
    "two messages in one": ready() * 2,
    "more than fits": b" " * MESSAGE_MAX + ready(),
    "deep": b"[" * 100_000,
    "deep in a field": ready()[:-2] + b', "more": ' + b"[" * 50_000,
    "the spawner's message": b'["Forked", {"ticket": 1, "pid": 1, "errno": 0}]',
    "the daemon's message": b'["StartRequest", {"name": "x"}]',
    "an end": b'["Exited", {"ticket": 1, "status": 0}]',
    "a name that is no text": b'[["Ready"], {}]',
    "a name of Python": b'["__class__", {}]',
    "no fields": b'["Ready", {}]',
    "a list of fields": b'["Ready", [5, {}]]',
    "a total that is text": ready(total="5"),
    "a negative total": ready(total=-1),
    "a huge total": ready(total=2**64),
    "a total of thousands of digits": ready().replace(b"5, ", b"9" * 4000 + b", ", 1),
    "infinity": ready().replace(b"5, ", b"Infinity, ", 1),
    "no baseline": ready(baseline=None),
    "defaults without names": ready(defaults=["crc32"]),
    "files that are no object": baseline(files=[]),
    "a file without a birth": baseline(files={"path": [1, 2]}),
    "many files": baseline(files={str(n): [1, 2, 3] for n in range(100)}),
    "a long name": baseline(files={"x" * 10_000: [1, 2, 3]}),
    "a huge size": baseline(size=2**64),
    "a negative end": baseline(end=-1),
    "a refusal without words": b'["WorkerRefused", {"errno": 2, "message": null}]',
}
REFUSALS = {
    b'["WorkerRefused", {"errno": 0, "message": "success"}]': errno.EIO,
    b'["WorkerRefused", {"errno": -1, "message": ""}]': errno.EIO,
    b'["WorkerRefused", {"errno": 99999999999999999999, "message": "x"}]': errno.EIO,
    b'["WorkerRefused", {"errno": 2, "message": "\\ud800\\u001b[31m\\n"}]': errno.ENOENT,
}


class Liar:
    """Takes the place of WorkerMaker.fork. Its workers send ``lie``, and end when their channel does, as real ones."""

    def __init__(self, lie: bytes, shape: Shape, fds: int = 0) -> None:
        self._lie = lie
        self._shape = shape
        self._fds = fds
        self.workers: list[subprocess.Popen[bytes]] = []

    async def fork(self, maker: WorkerMaker, task: Task, caller: CallerProcess, **_: object) -> NewWorker:
        return self._lying(task, caller.identity._replace(label=None))

    def _lying(self, task: Task, identity: Identity) -> NewWorker:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            for end in (ours, theirs):
                end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2 * MESSAGE_MAX)
            socket.send_fds(theirs, [self._lie], [2] * self._fds)
            worker = subprocess.Popen(["cat"], stdin=theirs.fileno(), stdout=subprocess.DEVNULL)
        self.workers.append(worker)
        page = os.memfd_create("page")
        pidfd = os.pidfd_open(worker.pid)
        handle = WorkerHandle(worker.pid, 0, pidfd, page, self._shape)
        return NewWorker(task, handle, trio.socket.from_stdlib_socket(ours), identity)

    def end(self) -> None:
        """Wait for its workers."""
        for worker in self.workers:
            worker.wait(DEADLINE)


async def refused(house: House, monkeypatch: pytest.MonkeyPatch, lie: bytes) -> KtaskfsError:
    """The refusal of a start whose worker sends ``lie``; nothing of the task may remain."""
    before = open_files()
    liar = Liar(lie, Shape(2, 2))
    monkeypatch.setattr(WorkerMaker, "fork", lambda *given, **named: liar.fork(*given, **named))
    try:
        with pytest.raises(KtaskfsError) as error:
            await house.run("clear path=/nowhere")
    finally:
        liar.end()
    assert (len(house.table), house.files()) == (0, [])
    await until(lambda: open_files() == before, "all descriptors are closed")
    return error.value


async def test_a_lie_on_the_channel_is_refused(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, lie in LIES.items():
        error = await refused(house, monkeypatch, lie)
        assert (name, error.errno) == (name, errno.EIO)
        assert "the worker sent an invalid" in error.message


async def test_a_refusal_is_passed_on_as_an_error_that_can_be(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    for lie, number in REFUSALS.items():
        error = await refused(house, monkeypatch, lie)
        assert (lie, error.errno) == (lie, number)
        assert error.message.isprintable()


async def test_descriptors_that_come_with_an_answer_are_not_taken(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = open_files()
    liar = Liar(ready(), Shape(2, 2), fds=200)
    monkeypatch.setattr(WorkerMaker, "fork", lambda *given, **named: liar.fork(*given, **named))
    (task,) = await house.run("clear path=/nowhere")
    liar.end()
    await until(lambda: task.state in ENDED, "its end")
    assert task.state is State.INTERRUPTED
    await until(lambda: open_files() == before, "all descriptors are closed")


END = RANGE.at + 64 * RANGE.words


def words(word: int, start: int, end: int) -> Callable[[Path], None]:
    """Fills words of the page with one number."""

    def write(page: Path) -> None:
        with page.open("r+b") as file:
            os.pwrite(file.fileno(), word.to_bytes(WORD, "little") * (end - start), start * WORD)

    return write


def cut(size: int) -> Callable[[Path], None]:
    return lambda page: os.truncate(page, size)


def replace(page: Path) -> None:
    page.unlink()
    page.write_bytes(b"another")


IN_THE_PAGE = {
    "zeros": words(0, 0, END),
    "ones": words(1, REPORT.at, END),
    "minus one": words(2**64 - 1, REPORT.at, END),
    "the least number": words(2**63, REPORT.at, END),
    "the greatest number": words(2**63 - 1, REPORT.at, END),
    "all slots": words(2**64 - 1, END, END + 64),
    "the requests": words(2**64 - 1, 0, REPORT.at),
    "cut to nothing": cut(0),
    "cut in a word": cut(REPORT.at * WORD + 5),
    "grown": cut(1 << 30),
    "gone": Path.unlink,
    "another file": replace,
}


def workers_left(mount: Mount) -> list[str]:
    """The names of workers, also of those that have ended and that the spawner has not reaped."""
    names = []
    for each in psutil.Process(mount.pid).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            names.append(each.name())
    return [name for name in names if name.startswith("ktask/")]


def test_a_lie_in_the_page_is_shown_and_harms_nobody(mounted: Mount, tmpfs: Path) -> None:
    shown = ("status", "stat", "progress", "threads", "error", "state")
    start_slow(mounted, tmpfs, "honest")
    for number, (name, lie) in enumerate(IN_THE_PAGE.items()):
        task = f"tasks/liar{number}"
        start_slow(mounted, tmpfs, f"liar{number}", rate="1")
        lie(max(mounted.statedir.glob("*.page")))
        read = 'cd "$1"; cat ' + " ".join(shown)
        assert mounted.shell(read, task).err == "", name
        assert mounted.read("metrics.openmetrics").endswith("# EOF\n"), name
        assert mounted.write(f"{task}/control", "kill")[1] in (None, "EBUSY")  # it may have ended already
        assert mounted.read(f"{task}/wait").splitlines()[-1] != "running", name
        assert mounted.shell(read, task).err == "", name
    assert mounted.read("tasks/honest/state") == "running\n"
    assert mounted.write("tasks/honest/control", "cancel") == (0, None)
    assert mounted.read("tasks/honest/wait").endswith("cancelled\n")
    wait_until(lambda: not workers_left(mounted), "the spawner has read their ends")
    assert mounted.write("tasks/control", f"fallocate path={tmpfs}/last length=4K name=last") == (0, None)
    assert mounted.read("tasks/last/wait").endswith("done\n"), "so their output is in the log"
    log = mounted.log.read_text()
    assert all(line.startswith("process ") for line in log.splitlines() if "Traceback" in line)  # of a worker itself
    mounted.log.write_text(log.replace("Traceback", "(seen)"))
