"""What the others notice while one unprivileged user does its worst: ``python -m bench.fairness`` (as root)."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import psutil

from bench.attackers import ATTACKS
from bench.harness import HERE, Goal, Section, Series, Table, main
from bench.mounts import Ktaskfs, directory

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from bench.harness import Settings

FIRST_UID: Final = 4_000_000_000
"""Users without an account, whom nobody else has."""
ATTACKER, VICTIM, ROOT = FIRST_UID, FIRST_UID + 1, 0
READ_GOAL: Final = 0.010
START_GOAL: Final = 0.100
MEMORY_GOAL: Final = 200 << 20
HELD: Final = {
    "a write that never ends": ("write", "tasks/control"),
    "a listing that never ends": ("getdents", "tasks"),
}
"""Attacks that need a FUSE filesystem of the attacker's own: tests/attacks/never.py."""


def as_user(uid: int, function: Callable[[], Any]) -> Any:
    """What ``function`` returns in a forked child of user ``uid``, through JSON."""
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


def reads(mount: Path, count: int) -> list[float]:
    """Seconds of each of ``count`` times to open, read and close a file."""
    took = []
    for _ in range(count):
        begun = time.perf_counter()
        (mount / "debug/ktask_max_threads").read_bytes()
        took.append(time.perf_counter() - begun)
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
def attacked(mount: Path, attack: str) -> Iterator[None]:
    """The attacker is at work meanwhile; it is killed at the end."""
    if attack in HELD:
        what, where = HELD[attack]
        command = [sys.executable, "-I", str(HERE.parent / "tests/attacks/never.py"), what, str(mount / where)]
    else:
        command = [sys.executable, "-m", "bench.attackers", attack, str(mount)]
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        cwd=HERE.parent,
        user=ATTACKER,
        group=ATTACKER,
        extra_groups=[],
        start_new_session=True,
    ) as process:
        try:
            assert process.stdout is not None
            process.stdout.readline()
            yield
        finally:
            os.killpg(process.pid, signal.SIGKILL)


def kill_tasks(mount: Path) -> None:
    """End what the attacker has left at work."""
    for task in (mount / "tasks").iterdir():
        if task.name != "control" and (task / "state").read_text().strip() in ("running", "starting"):
            (task / "control").write_text("kill")
            (task / "wait").read_bytes()


def percentile(values: list[float]) -> float:
    """The 99th, or the greatest of few."""
    return statistics.quantiles(values, n=100, method="inclusive")[-1] if len(values) > 1 else values[0]


def measure(attack: str | None, settings: Settings) -> dict[str, list[float]]:
    """Seconds by what was done and by whom, and the bytes of the daemon, on a mount of its own."""
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
            found[f"read, {who}"] = as_user(uid, lambda: reads(mount.path, times))
            found[f"start, {who}"] = as_user(uid, lambda: starts(mount.path, few))
        found["daemon"] = [float(daemon.memory_info().rss)]
    return found


def shown(attack: str | None) -> str:
    """The attack as a table has it."""
    return "nobody attacks" if attack is None else attack.replace("_", " ")


def build(settings: Settings) -> list[Section]:
    names = [None, *ATTACKS, *HELD]
    found = {name: measure(name, settings) for name in names}
    sections = []
    for what, goal in (("read", READ_GOAL), ("start", START_GOAL)):
        series, goals = [], []
        for name, values in found.items():
            for key in (key for key in values if key.startswith(f"{what}, ")):
                label = f"{shown(name)}: {key.removeprefix(what + ', ')}"
                series.append(Series(label, [percentile(values[key])]))
                goals.append(Goal(label, label, None, most=goal))
        title = {"read": "`cat debug/ktask_max_threads`", "start": "Start of a task of one page"}[what]
        sections.append(Section(f"{title}, 99th percentile", series, unit="ms", goals=goals))
    rows = [[shown(name), f"{values['daemon'][0] / (1 << 20):.0f}"] for name, values in found.items()]
    sections.append(Section("Memory of the daemon", [], tables=[Table(["while", "MiB"], rows)]))
    return sections


if __name__ == "__main__":
    main("fairness", "One user and all others", build)
