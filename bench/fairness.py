"""The effects of one unprivileged user's attacks on other users: ``python -m bench.fairness`` (as root)."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import stat
import statistics
import subprocess
import sys
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import psutil

from bench.attackers import AS_ROOT, ATTACKS, ON_MEMORY
from bench.harness import HERE, Goal, Section, Series, Table, main
from bench.mounts import KTASKFS, Ktaskfs, directory

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from bench.harness import Settings

FIRST_UID: Final = 4_000_000_000
"""Users without an account and without other processes."""
ATTACKER, VICTIM, ROOT = FIRST_UID, FIRST_UID + 1, 0
FUSE_DEVICE: Final = Path(f"/dev/fuse-of-fairness-{os.getpid()}")
READ_GOAL: Final = 0.010
START_GOAL: Final = 0.100
MEMORY_GOAL: Final = 200 << 20
SUCCESSION_GOAL: Final = 2.0
MEMORY_SECONDS: Final = 20.0
FEWER: Final = 30
"""Of the users, threads and open files of an attack on memory, a smoke has one in so many."""
PATIENCE: Final = 120.0
"""Seconds for an attack to begin; the longest takes ten."""
HELD: Final = {
    "a write that never ends": ("write", "tasks/control"),
    "a listing that never ends": ("getdents", "tasks"),
}
"""Attacks that need a FUSE filesystem of the attacker's own: tests/attacks/never.py."""


def as_user(uid: int, function: Callable[[], Any]) -> Any:
    """The result of ``function`` in a forked child of user ``uid``, passed as JSON."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.setgroups([])
            os.setresgid(uid, uid, uid)
            os.setresuid(uid, uid, uid)
            os.write(writer, json.dumps(function()).encode())
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        text = pipe.read()
    os.waitpid(pid, 0)
    return json.loads(text)


def cpu_clock(pid: int) -> int:
    """The clock of the CPU time of a process: what clock_getcpuclockid(3) gives."""
    return (~pid << 3) | 2


def reads(mount: Path, daemon: int, count: int) -> list[tuple[float, float]]:
    """For each of ``count`` times to open, read and close a file: seconds, and those that the daemon was on a CPU."""
    took = []
    clock = cpu_clock(daemon)
    for _ in range(count):
        worked, begun = time.clock_gettime(clock), time.perf_counter()
        (mount / "debug/ktask_max_threads").read_bytes()
        took.append((time.perf_counter() - begun, time.clock_gettime(clock) - worked))
        time.sleep(0.001)  # a reader that never rests would measure its own share of the CPU
    return took


def starts(mount: Path, count: int) -> list[float]:
    """Seconds of each of ``count`` writes that start a task of one page; one before them does not count."""
    file = Path(f"/dev/shm/ktaskfs-fairness-{os.getuid()}")
    took = []
    for number in range(count + 1):
        name = f"victim-{os.getuid()}-{number}"
        begun = time.perf_counter()
        (mount / "tasks/control").write_text(f"fallocate path={file} length=4K name={name}")
        took.append(time.perf_counter() - begun)
        (mount / f"tasks/{name}/wait").read_bytes()
        (mount / f"tasks/{name}").rmdir()
    file.unlink()
    return took[1:]


@contextlib.contextmanager
def fuse_for_all() -> Iterator[None]:
    """FUSE_DEVICE, which every user may open. The mode of /dev/fuse itself is the machine's."""
    os.mknod(FUSE_DEVICE, stat.S_IFCHR, os.stat("/dev/fuse").st_rdev)
    try:
        FUSE_DEVICE.chmod(0o666)
        yield
    finally:
        FUSE_DEVICE.unlink()


@contextlib.contextmanager
def attacked(mount: Path, attack: str, *more: str, uid: int = ATTACKER) -> Iterator[None]:
    """Run the attacker, with ``more`` arguments, until the end of the block; then kill it."""
    if attack in HELD:
        what, where = HELD[attack]
        command = [sys.executable, "-I", str(HERE.parent / "tests/attacks/never.py"), what, str(mount / where)]
    else:
        command = [sys.executable, "-m", "bench.attackers", attack, str(mount), *more]
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        cwd=HERE.parent,
        env=os.environ | {"FUSE_DEVICE": str(FUSE_DEVICE)},
        user=uid,
        group=uid,
        extra_groups=[],
        start_new_session=True,
    ) as process:
        try:
            assert process.stdout is not None
            said, _, _ = select.select([process.stdout], [], [], PATIENCE)
            if not said or not process.stdout.readline():
                raise RuntimeError(f"the attack does not begin: {attack}")
            yield
        finally:
            os.killpg(process.pid, signal.SIGKILL)


def kill_tasks(mount: Path) -> None:
    """End the tasks that the attacker has left."""
    for task in (mount / "tasks").iterdir():
        if task.name != "control" and (task / "state").read_text().strip() in ("running", "starting"):
            (task / "control").write_text("kill")
            (task / "wait").read_bytes()


def percentile(values: list[float]) -> float:
    """The 99th, or the greatest of few."""
    return statistics.quantiles(values, n=100, method="inclusive")[-1] if len(values) > 1 else values[0]


def measure(attack: str | None, settings: Settings) -> dict[str, list[float]]:
    """Seconds by action and user, and the bytes of the daemon, on a separate mount."""
    times, few = (20, 2) if settings.smoke else (500, 20)
    with contextlib.ExitStack() as stack:
        where = stack.enter_context(directory())
        where.chmod(0o755)
        mount = stack.enter_context(Ktaskfs(where / "mount", where / "state", options="mode=0666"))
        daemon = psutil.Process(mount.processes()[0].pid)
        stack.callback(kill_tasks, mount.path)
        if attack is not None:
            stack.enter_context(attacked(mount.path, attack))
        found = {}
        for who, uid in (("another user", VICTIM), ("root", ROOT)):
            took, worked = zip(*as_user(uid, lambda: reads(mount.path, daemon.pid, times)), strict=True)
            found[f"read, {who}"], found[f"work, {who}"] = list(took), list(worked)
            found[f"start, {who}"] = as_user(uid, lambda: starts(mount.path, few))
        found["daemon"] = [float(daemon.memory_info().rss)]
    return found


def most_memory(attack: str, settings: Settings) -> float:
    """The most bytes that the daemon has had after an attack on its memory, with hidepid=1."""
    seconds, fewer = (0.0, FEWER) if settings.smoke else (MEMORY_SECONDS, 1)
    with contextlib.ExitStack() as stack:
        where = stack.enter_context(directory())
        where.chmod(0o755)
        options = "mode=0666,hidepid=1"  # so that no two users share the lines of events
        mount = stack.enter_context(Ktaskfs(where / "mount", where / "state", options=options))
        daemon = psutil.Process(mount.processes()[0].pid)
        stack.callback(kill_tasks, mount.path)
        uid = ROOT if attack in AS_ROOT else ATTACKER
        stack.enter_context(attacked(mount.path, attack, str(fewer), uid=uid))
        time.sleep(seconds)
        lines = Path(f"/proc/{daemon.pid}/status").read_text().splitlines()
    return next(float(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


def first_mount() -> float:
    """Seconds until a daemon without a predecessor answers."""
    with directory() as where, Ktaskfs(where / "mount", where / "state") as mount:
        return mount.ready_seconds


def succession(attack: str | None) -> float:
    """Seconds until a successor answers, after the daemon was stopped, and killed, under ``attack``."""
    with contextlib.ExitStack() as stack:
        where = stack.enter_context(directory())
        where.chmod(0o755)
        mount = stack.enter_context(Ktaskfs(where / "mount", where / "state", options="mode=0666"))
        attacker = stack.enter_context(contextlib.ExitStack())
        if attack is not None:
            attacker.enter_context(attacked(mount.path, attack))
        daemon = mount.processes()[0]
        daemon.suspend()
        waiting = psutil.Popen(["mkdir", str(mount.path / "none")], stderr=subprocess.DEVNULL)
        while waiting.status() == psutil.STATUS_RUNNING:
            time.sleep(0.001)
        daemon.kill()
        begun = time.perf_counter()
        options = f"statedir={where / 'state'},mode=0666"
        subprocess.run([str(KTASKFS), "mount", "-o", options, str(mount.path)], check=True)
        mount.read("version")
        took = time.perf_counter() - begun
        attacker.close()
        waiting.wait()
    return took


def shown(attack: str | None) -> str:
    """The attack as a table has it."""
    return "nobody attacks" if attack is None else attack.replace("_", " ")


def build(settings: Settings) -> list[Section]:
    with fuse_for_all():
        return measured(settings)


def measured(settings: Settings) -> list[Section]:
    """All sections."""
    names = [None, *ATTACKS, *HELD]
    found = {name: measure(name, settings) for name in names}
    sections = []
    for what, title, goal in (
        ("read", "`cat debug/ktask_max_threads`", READ_GOAL),
        ("work", "CPU time of the daemon during one such `cat`", READ_GOAL),
        ("start", "Start of a task of one page", START_GOAL),
    ):
        series, goals = [], []
        for name, values in found.items():
            for key in (key for key in values if key.startswith(f"{what}, ")):
                label = f"{shown(name)}: {key.removeprefix(what + ', ')}"
                series.append(Series(label, [percentile(values[key])]))
                goals.append(Goal(label, label, None, most=goal))
        sections.append(Section(f"{title}, 99th percentile", series, unit="ms", goals=goals))
    return [*sections, memory(found, settings), successions(settings)]


def memory(found: dict[str | None, dict[str, list[float]]], settings: Settings) -> Section:
    """The memory of the daemon: after each attack on others' time, and its maximum under attacks on its memory."""
    rows = [[shown(name), f"{values['daemon'][0] / (1 << 20):.0f}"] for name, values in found.items()]
    most = [Series(shown(each), [most_memory(each, settings)]) for each in ON_MEMORY]
    goals = [Goal(f"the most while {each.name}", each.name, None, most=MEMORY_GOAL) for each in most]
    return Section("Memory of the daemon", most, unit="bytes", goals=goals, tables=[Table(["while", "MiB"], rows)])


def successions(settings: Settings) -> Section:
    """How long a successor takes."""
    count = 1 if settings.smoke else 5
    series, goals = [Series("a first daemon", [first_mount() for _ in range(count)])], []
    for attack in (None, *HELD):
        values = [succession(attack) for _ in range(count)]
        series.append(Series(shown(attack), values))
        series.append(Series(f"{shown(attack)}: the longest", [max(values)]))
        goals.append(Goal(shown(attack), f"{shown(attack)}: the longest", None, most=SUCCESSION_GOAL))
    return Section("A successor answers, after the daemon was killed", series, unit="ms", goals=goals)


if __name__ == "__main__":
    main("fairness", "One user and all others", build)
