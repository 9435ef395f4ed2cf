"""The life of a worker, without a daemon."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from ktaskfs.host.credentials import read_caller
from ktaskfs.ktask import NO_NODE
from ktaskfs.operations.base.resume import FileState
from ktaskfs.progress import Phase, Requests
from ktaskfs.worker import protocol
from tests.support.poll import DEADLINE, until
from tests.worker.spawned import MIB, PAUSED

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.worker.spawned import Spawner

FS_IOC_SETFLAGS, FS_APPEND_FL = 0x40086602, 0x20
"""Of linux/fs.h."""
SLOW = Requests(rate=1)
"""A unit a second: after a first chunk nothing more happens for a very long time."""


def test_a_worker_does_its_task(spawner: Spawner, memory: Path) -> None:
    worker = spawner.spawn("fallocate", memory / "file", length=4 * MIB)
    assert worker.forked.errno == 0
    answer = worker.answer()
    assert isinstance(answer, protocol.Ready)
    assert answer.total == 4 * MIB
    worker.channel.send(protocol.GO)
    assert spawner.exited(worker) == 0
    snapshot = worker.snapshot()
    assert (snapshot.phase, snapshot.done, snapshot.total, snapshot.errno) == (Phase.DONE, 4 * MIB, 4 * MIB, 0)
    assert os.stat(memory / "file").st_blocks * 512 == 4 * MIB


def test_the_callers_limit_of_file_sizes_is_not_for_the_result(spawner: Spawner, memory: Path) -> None:
    (memory / "file").write_bytes(b"x")
    request = spawner.request("checksum", {"path": str(memory / "file")})
    worker = spawner.send(request._replace(identity={**request.identity, "file_size_max": 0}), Requests())
    worker.go()
    assert spawner.exited(worker) == 0
    snapshot = worker.snapshot()
    assert (snapshot.phase, snapshot.message) == (Phase.DONE, "")
    assert snapshot.result_size == len("crc32 8cdc1683\n")


@pytest.mark.parametrize(("done", "number"), [(0, 0), (MIB, errno.ENOENT), (None, errno.ENOENT)])
def test_the_rest_of_a_task_rests_on_what_was_done(
    spawner: Spawner, memory: Path, done: int | None, number: int
) -> None:
    """If the file is gone and nothing was done, the task can start again; otherwise only the rest would be done. None:
    something was, in an earlier boot."""
    path = memory / "file"
    request = spawner.request(
        "fallocate",
        {"path": str(path), "length": str(4 * MIB)},
        remaining=None if done is None else [[done, 4 * MIB - done, NO_NODE]],
        baseline={"files": {"path": [1, 2, 3]}, "end": 4 * MIB, "size": 4 * MIB, "total": 4 * MIB, "tree": 0},
    )
    answer = spawner.send(request, Requests()).answer()
    assert (answer.errno if isinstance(answer, protocol.WorkerRefused) else 0) == number
    assert path.exists() == (number == 0)


@pytest.mark.parametrize(("done", "number"), [(0, 0), (MIB, errno.ESTALE)])
def test_the_rest_of_a_copy_needs_the_same_source(spawner: Spawner, memory: Path, done: int, number: int) -> None:
    source, path = memory / "source", memory / "file"
    source.write_bytes(b"x" * 4 * MIB)
    path.write_bytes(b"y" * 4 * MIB)
    files = {"source": FileState.of(str(source)).identity, "path": FileState.of(str(path)).identity}
    request = spawner.request(
        "copy",
        {"source": str(source), "path": str(path)},
        remaining=[[done, 4 * MIB - done, NO_NODE]],
        baseline={"files": files, "end": 4 * MIB, "size": 4 * MIB, "total": 4 * MIB, "tree": 5},
    )
    answer = spawner.send(request, Requests()).answer()
    assert (answer.errno if isinstance(answer, protocol.WorkerRefused) else 0) == number
    if isinstance(answer, protocol.Ready):
        assert (answer.total, answer.baseline["tree"] in (0, 5)) == (4 * MIB, False)


@pytest.mark.parametrize("remaining", [[[0, 1, NO_NODE]], None], ids=["nothing was done", "it never began"])
def test_nothing_is_done_to_another_process_of_the_same_number(
    spawner: Spawner, remaining: list[list[int]] | None
) -> None:
    """Not even if nothing was done to the first one: ``pid`` named that one."""
    pid = os.getpid()
    request = spawner.request(
        "survey",
        {"pid": str(pid)},
        remaining=remaining,
        baseline={"files": {"pid": [pid, 1, 0]}, "end": 0, "size": 0, "total": 1, "tree": 0},
    )
    answer = spawner.send(request, Requests()).answer()
    assert isinstance(answer, protocol.WorkerRefused)
    assert (answer.errno, "is not the process of the task's start" in answer.message) == (errno.ESTALE, True)


@pytest.mark.parametrize(
    ("operation", "parameters", "number"),
    [
        ("clear", {"path": "/dev/shm/there is no such file"}, errno.ENOENT),
        ("clear", {"path": "/dev/shm"}, errno.EISDIR),
        ("clear", {"path": "/dev/null"}, errno.EINVAL),
        ("clear", {"path": "/dev/shm/" + "\x01" * 60_000}, errno.ENAMETOOLONG),
        ("fallocate", {"path": "/dev/shm/x", "length": "7"}, errno.EINVAL),
        ("fallocate", {"path": "/dev/shm/x", "length": "1E"}, errno.ENOSPC),
        ("fallocate", {"path": "/dev/shm/x"}, errno.EINVAL),
        ("fallocate", {}, errno.EINVAL),
        ("fallocate", {"path": "/dev/shm/x", "length": "4K", "colour": "red"}, errno.EINVAL),
    ],
)
def test_what_a_worker_refuses(spawner: Spawner, operation: str, parameters: dict[str, str], number: int) -> None:
    worker = spawner.send(spawner.request(operation, parameters), Requests())
    refusal = worker.answer()
    assert isinstance(refusal, protocol.WorkerRefused)
    assert (refusal.errno, errno.errorcode[refusal.errno]) == (number, errno.errorcode[number])
    assert refusal.message
    assert spawner.exited(worker) == 0
    assert worker.snapshot().phase is Phase.STARTING
    assert not os.path.exists("/dev/shm/x")


def test_without_go_nothing_is_done_and_a_created_file_is_removed(spawner: Spawner, memory: Path) -> None:
    worker = spawner.spawn("fallocate", memory / "file", length=MIB)
    assert isinstance(worker.answer(), protocol.Ready)
    assert (memory / "file").exists()
    worker.channel.close()
    assert spawner.exited(worker) == 0
    assert list(memory.iterdir()) == []
    assert worker.snapshot().phase is Phase.STARTING


def test_a_file_that_was_there_keeps_its_size_without_go(spawner: Spawner, memory: Path) -> None:
    (memory / "file").write_bytes(b"x" * 4096)
    worker = spawner.spawn("fallocate", memory / "file", length=MIB)
    assert isinstance(worker.answer(), protocol.Ready)
    worker.channel.send(b"anything but go")
    assert spawner.exited(worker) == 0
    assert (memory / "file").read_bytes() == b"x" * 4096


def test_a_worker_that_waits_for_go_ends_with_the_daemon(spawner: Spawner, memory: Path) -> None:
    worker = spawner.spawn("fallocate", memory / "file", length=MIB)
    assert isinstance(worker.answer(), protocol.Ready)
    spawner.sock.close()
    worker.channel.close()
    assert worker.has_ended(DEADLINE)
    assert list(memory.iterdir()) == []


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one CPU has no helper threads")
def test_ps_and_top_show_the_name_of_the_task(spawner: Spawner, memory: Path) -> None:
    name = "a_name_longer_than_the_kernel_keeps"
    requests = SLOW._replace(threads=2)
    worker = spawner.spawn("fallocate", memory / "file", length=4 * MIB, chunk=4096, name=name, requests=requests)
    worker.go()

    def names() -> set[str]:
        return {(task / "comm").read_text().rstrip("\n") for task in worker.proc("task").iterdir()}

    until(lambda: any(each.endswith(":1") for each in names()), "a helper thread has its name")
    assert worker.proc("cmdline").read_bytes().rstrip(b"\0") == f"ktask/{name}".encode()
    assert worker.proc("comm").read_text() == f"ktask/{name}"[:15] + "\n"
    assert f"ktask/{name}"[:13] + ":1" in names()


def test_a_short_name_is_shown_whole(spawner: Spawner, memory: Path) -> None:
    worker = spawner.spawn("fallocate", memory / "file", length=MIB, name="vm0", requests=PAUSED)
    worker.go()
    assert worker.proc("comm").read_text() == "ktask/vm0\n"


def test_a_term_signal_interrupts(spawner: Spawner, memory: Path) -> None:
    worker = spawner.spawn("fallocate", memory / "file", length=4 * MIB, requests=PAUSED)
    worker.go()
    until(lambda: worker.snapshot().phase is Phase.RUNNING, "the worker begins")
    os.kill(worker.forked.pid, signal.SIGTERM)
    assert os.WTERMSIG(spawner.exited(worker)) == signal.SIGTERM
    assert (worker.snapshot().phase, worker.snapshot().done) == (Phase.RUNNING, 0)


@pytest.mark.parametrize("wish", [Requests(nice=10**6), Requests(nice=-(10**6)), Requests(threads=2**63, nice=0)])
def test_wishes_that_cannot_be_are_made_possible(spawner: Spawner, memory: Path, wish: Requests) -> None:
    worker = spawner.spawn("fallocate", memory / "file", length=4 * MIB, requests=wish._replace(paused=True))
    worker.go()
    worker.ask(wish._replace(paused=True, threads=1))
    worker.ask(wish)
    assert spawner.exited(worker) == 0
    assert worker.snapshot().phase is Phase.DONE


def test_a_cancel_before_the_work_began_is_heard(spawner: Spawner, memory: Path) -> None:
    worker = spawner.spawn("fallocate", memory / "file", length=MIB)
    assert isinstance(worker.answer(), protocol.Ready)
    worker.ask(Requests(cancel=True))
    worker.channel.send(protocol.GO)
    assert spawner.exited(worker) == 0
    assert worker.snapshot().phase is Phase.CANCELLED


def test_more_ranges_than_the_page_has_room_for(spawner: Spawner, memory: Path) -> None:
    (memory / "file").write_bytes(b"x" * MIB)
    parameters = {"path": str(memory / "file")}
    ranges = [(start, 4096, -1) for start in range(0, 9 * 8192, 8192)]
    worker = spawner.send(spawner.request("clear", parameters, remaining=ranges), Requests())
    refusal = worker.answer()
    assert isinstance(refusal, protocol.WorkerRefused)
    assert refusal.errno == errno.EOPNOTSUPP
    assert spawner.exited(worker) == 0


@pytest.mark.usefixtures("root")
def test_a_worker_reads_no_file_of_its_callers_sys(spawner: Spawner, tmp_path: Path) -> None:
    """A FIFO there would block it."""
    node = tmp_path / "sys/devices/system/node/node0"
    node.mkdir(parents=True)
    os.mkfifo(node / "cpulist")
    (tmp_path / "file").write_bytes(b"x")
    program = f"import os, sys; os.chroot({str(tmp_path)!r}); os.chdir('/'); print(flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"\n"
        request = spawner.request("checksum", {"path": "/file", "nodes": "0"})
        caller = read_caller(process.pid, 0, 0)
        worker = spawner.send(request._replace(identity=caller.identity.to_fields()), Requests(), caller)
        worker.go()
        assert worker.has_ended(DEADLINE)
        assert spawner.exited(worker) == 0
    assert worker.snapshot().phase is Phase.DONE


@pytest.fixture
def keeps(memory: Path, root: None) -> Iterator[Path]:
    """A directory in which files can be made, but not removed."""
    _set_append_only(memory, append=True)
    yield memory
    _set_append_only(memory, append=False)


def _set_append_only(directory: Path, *, append: bool) -> None:
    """As chattr(1) does with a; ioctl_iflags(2)."""
    fd = os.open(directory, os.O_RDONLY)
    try:
        fcntl.ioctl(fd, FS_IOC_SETFLAGS, (FS_APPEND_FL if append else 0).to_bytes(8, sys.byteorder))
    except OSError as error:
        pytest.skip(f"tmpfs has no such flag before Linux 6.6: {error.strerror}")
    finally:
        os.close(fd)


def test_a_failed_undo_does_not_hide_the_refusal(spawner: Spawner, keeps: Path) -> None:
    request = spawner.request(
        "fallocate",
        {"path": str(keeps / "file"), "length": str(MIB)},
        remaining=[(start, 4096, NO_NODE) for start in range(0, 9 * 8192, 8192)],
    )
    worker = spawner.send(request, Requests())
    refusal = worker.answer()
    assert isinstance(refusal, protocol.WorkerRefused)
    words = "9 ranges do not fit the shared page; undo failed: Operation not permitted"
    assert (refusal.errno, refusal.message) == (errno.EOPNOTSUPP, words)
    assert spawner.exited(worker) == 0


def test_a_cancelled_task_whose_undo_failed_has_failed(spawner: Spawner, keeps: Path) -> None:
    worker = spawner.spawn("fallocate", keeps / "file", length=MIB, undo=1)
    assert isinstance(worker.answer(), protocol.Ready)
    worker.ask(Requests(cancel=True))
    worker.channel.send(protocol.GO)
    assert spawner.exited(worker) == 0
    snapshot = worker.snapshot()
    assert (snapshot.phase, snapshot.errno, snapshot.message) == (Phase.FAILED, errno.EPERM, "Operation not permitted")
