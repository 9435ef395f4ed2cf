"""Everything that a worker holds and can reach in each phase of its life: additions must be added here."""

from __future__ import annotations

import errno
import os
import re
import socket
import stat
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

from ktaskfs.host.credentials import read_caller
from ktaskfs.operations.base.registry import find_operations
from ktaskfs.progress import Phase, Requests
from ktaskfs.worker import protocol
from ktaskfs.worker import spawner as spawning
from ktaskfs.worker.seal import close_imports, report
from ktaskfs.worker.spawner import OUTPUT_MAX
from tests.support.cgroups import hierarchies
from tests.support.daemon import ROOT
from tests.support.forked import run_forked
from tests.support.poll import until
from tests.support.shell import run

if TYPE_CHECKING:
    from tests.worker.spawned import Spawner

pytestmark = pytest.mark.usefixtures("root")

MIB = 1 << 20
ZERO = stat.S_IFCHR, os.makedev(1, 5)
ALWAYS = ["/dev/null", "/dev/null", "/dev/zero read-only", "/proc read-only", "/sys read-only", "output"]
LIMITS = [f"{point} read-only" for names, point in hierarchies() if {"", "memory", "hugetlb"} & set(names)]
"""Where a worker reads the limits of its control groups."""
ENTRANCES = [str(point) for _, point in hierarchies()]
"""Where it enters its caller's control groups, and no longer than until then."""
PAGE = ["page", "page"]
"""For the result, and a copy that the mmap module of Python keeps."""
NAMESPACES = ("cgroup", "ipc", "mnt", "net", "pid", "time", "uts")
CALLERS = {
    "root": (),
    "an ordinary user": ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"),
    "root without capabilities": ("setpriv", "--bounding-set=-all", "--inh-caps=-all"),
    "root of a user namespace": ("unshare", "--user", "--map-root-user"),
}


@dataclass(frozen=True)
class Held:
    """The possessions of a process."""

    descriptors: list[str]
    namespaces: dict[str, str]
    effective: int
    permitted: int
    bounding: int
    no_new_privs: int


def held(pid: int, known: dict[str, str]) -> Held:
    """The possessions of the process ``pid``; ``known`` are words for paths."""
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return Held(
        descriptors=sorted(descriptor(f"/proc/{pid}/fd/{fd}", known) for fd in os.listdir(f"/proc/{pid}/fd")),
        namespaces=namespaces(pid),
        effective=int(status["CapEff"], 16),
        permitted=int(status["CapPrm"], 16),
        bounding=int(status["CapBnd"], 16),
        no_new_privs=int(status["NoNewPrivs"]),
    )


def namespaces(pid: int | str) -> dict[str, str]:
    return {each: os.readlink(f"/proc/{pid}/ns/{each}") for each in ("user", *NAMESPACES)}


def descriptor(path: str, known: dict[str, str]) -> str:
    """The target of a descriptor, as a word."""
    leads_to, status = os.readlink(path), os.stat(path)
    if leads_to in known:
        return known[leads_to]
    if stat.S_ISFIFO(status.st_mode):
        return "output"
    if stat.S_ISSOCK(status.st_mode):
        return "socket"
    if (stat.S_IFMT(status.st_mode), status.st_rdev) == ZERO:
        flags = re.findall(r"flags:\s*(\d+)", Path(path.replace("/fd/", "/fdinfo/")).read_text())
        return "/dev/zero" + " read-only" * (int(flags[0], 8) & os.O_ACCMODE == os.O_RDONLY)
    for name in ("/proc", "/sys", *(str(point) for _, point in hierarchies())):
        if os.path.samefile(path, name):
            return name + " read-only" * bool(os.statvfs(path).f_flag & os.ST_RDONLY)
    return leads_to


@pytest.mark.parametrize("name", CALLERS)
def test_all_that_a_worker_has(spawner: Spawner, memory: Path, name: str) -> None:
    memory.chmod(0o777)
    (memory / "file").touch()
    (memory / "file").chmod(0o666)
    script = "cd /; echo; read line"
    with subprocess.Popen(
        [*CALLERS[name], "sh", "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        ids = os.stat(f"/proc/{process.pid}").st_uid, os.stat(f"/proc/{process.pid}").st_gid
        caller = read_caller(process.pid, *ids)
        effective, permitted, bounding = caller.identity.capabilities

        # Forked ahead: with the identity of its spawner only.
        until(lambda: titles(spawner) == ["ktaskfs: spare worker"], "a worker forked ahead")
        (spare,) = psutil.Process(spawner.process.pid).children()
        until(lambda: spare.num_threads() == 1 and spare.status() == psutil.STATUS_SLEEPING, "it waits")
        known = {str(spawner.area / "page1"): "page", str(memory / "file"): "target"}
        ahead = held(spare.pid, known)
        assert ahead.descriptors == sorted([*ALWAYS, *LIMITS, *ENTRANCES, "socket"])
        assert ahead.namespaces == namespaces("self")

        # Ready: its caller, with the channel to the daemon.
        parameters = {"path": str(memory / "file"), "length": str(MIB)}
        request = spawner.request("fallocate", parameters, identity=caller.identity.to_fields())
        worker = spawner.send(request, Requests(paused=True), caller)
        assert worker.forked.pid == spare.pid
        answer = worker.answer()
        assert isinstance(answer, protocol.Ready), answer
        ready = held(spare.pid, known)
        expected = Held(
            descriptors=sorted([*ALWAYS, *LIMITS, *PAGE, "socket", "target"]),
            namespaces=namespaces("self") | {"user": namespaces(process.pid)["user"]},
            effective=effective,
            permitted=permitted,
            bounding=bounding,
            no_new_privs=1,
        )
        assert ready == expected

        # At work: without the channel.
        worker.channel.send(protocol.GO)
        until(lambda: worker.snapshot().phase is Phase.RUNNING, "the worker begins")
        assert held(spare.pid, known) == replace(expected, descriptors=sorted([*ALWAYS, *LIMITS, *PAGE, "target"]))

        # A process with the caller's ids, and no capability outside, cannot look into it.
        look = run(*CALLERS[name], "ls", f"/proc/{spare.pid}/root/", f"/proc/{spare.pid}/cwd/")
        assert (look.status == 0) == (name == "root")
        process.communicate()


def titles(spawner: Spawner) -> list[str]:
    return [" ".join(each.cmdline()).strip() for each in psutil.Process(spawner.process.pid).children()]


def test_nothing_is_looked_for_any_more(tmp_path: Path) -> None:
    (tmp_path / "planted.py").write_text("raise SystemExit('the code ran')")
    (tmp_path / "source.py").write_text("# coding: planted\n1/0\n")

    def attempts() -> dict[str, str]:
        sys.path.insert(0, str(tmp_path))
        close_imports()
        found = {}
        for attempt in (
            "import planted",
            "import encodings.planted",
            "import this",  # of the library, and never imported
            "b'x'.decode('planted')",
            "import linecache; [][len(linecache.getlines('/etc/passwd'))]",
        ):
            try:
                exec(attempt)
            except Exception as error:
                found[attempt] = type(error).__name__
        state = (sys.meta_path, sys.path_hooks, sys.path, sys.path_importer_cache)
        found["state"] = str([len(each) for each in state])
        found["known"] = b"x".decode("latin-1") + "x".encode("ascii").decode("utf-8")
        return found

    assert run_forked(attempts) == {
        "import planted": "ModuleNotFoundError",
        "import encodings.planted": "ModuleNotFoundError",
        "import this": "ModuleNotFoundError",
        "b'x'.decode('planted')": "LookupError",
        "import linecache; [][len(linecache.getlines('/etc/passwd'))]": "IndexError",
        "state": "[0, 0, 0, 0]",
        "known": "xx",
    }


def test_a_spawner_has_closed_them_before_it_forks(monkeypatch: pytest.MonkeyPatch) -> None:
    def serve() -> list[list[int]]:
        daemon, own = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        found: list[list[int]] = []

        def fork() -> int:
            found.append([len(each) for each in (sys.meta_path, sys.path_hooks, sys.path, sys.path_importer_cache)])
            daemon.close()  # so that the spawner ends
            raise BlockingIOError(errno.EAGAIN, "no process is left")

        monkeypatch.setattr(spawning, "fork", fork)
        spawning.Spawner(own, find_operations()).serve()
        return found

    assert run_forked(serve) == [[0, 0, 0, 0]]


def test_all_ways_by_which_python_tells_of_an_exception_show_no_source() -> None:
    """An object that is collected, a thread, and the interpreter itself, without a hook."""
    script = (
        "import sys, threading; from ktaskfs.worker.seal import close_imports; close_imports()\n"
        "class Last:\n  def __del__(self): raise ValueError('unraisable')\n"
        "Last()\n"
        "t = threading.Thread(target=lambda: [][1]); t.start(); t.join()\n"
        "sys.excepthook = sys.__excepthook__\n"
        "from ktaskfs.worker import seal; seal.codecs.lookup(None)\n"
    )
    outcome = run(sys.executable, "-c", script, cwd=ROOT)
    assert outcome.status == 1
    assert outcome.err.count("Error: ") == 3, outcome.err
    assert "codecs.lookup(None)" not in outcome.err
    assert "[][1]" not in outcome.err


def test_a_report_names_places_and_causes(capfd: pytest.CaptureFixture[str]) -> None:
    try:
        try:
            raise ValueError("first")
        except ValueError as error:
            raise KeyError("second") from error
    except KeyError as error:
        report(error)
    lines = capfd.readouterr().err.splitlines()
    assert [line for line in lines if not line.startswith(" ")] == [
        "Traceback (most recent call last):",
        "KeyError: 'second'",
        "caused by:",
        "ValueError: first",
    ]
    assert any(f'File "{__file__}"' in line for line in lines)


def test_standard_error_of_a_worker_is_bounded_and_blocks_nobody(spawner: Spawner, memory: Path) -> None:
    worker = spawner.spawn("fallocate", memory / "file", length=MIB, requests=Requests(paused=True))
    worker.go()
    until(lambda: worker.snapshot().phase is Phase.RUNNING, "the worker begins")
    written = 0
    with open(worker.proc("fd") / "2", "wb", buffering=0, opener=nonblocking) as theirs:
        while (count := theirs.write(b"\x1b[31m" + b"x" * 1000 + b"\n")) is not None:
            written += count
    assert 0 < written <= OUTPUT_MAX
    worker.ask(Requests())
    assert spawner.exited(worker) == 0
    log = spawner.log.read_text()
    assert f"process {worker.forked.pid}: ?[31mxxx" in log
    assert "\x1b" not in log
    assert len(log) < 2 * OUTPUT_MAX


def nonblocking(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)


@pytest.mark.parametrize("full", [False, True], ids=["nobody reads", "no room"])
def test_what_cannot_be_reported_is_not_reported(full: bool) -> None:
    """The spawner is gone, or has not read yet: the worker goes on to say on its page how it ended."""

    def body() -> str:
        reader, writer = os.pipe2(os.O_NONBLOCK)
        os.dup2(writer, 2)
        if full:
            while True:
                try:
                    os.write(writer, bytes(1 << 16))
                except BlockingIOError:
                    break
        else:
            os.close(reader)
        report(MemoryError())
        return "went on"

    assert run_forked(body) == "went on"
