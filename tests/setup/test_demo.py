"""`make demo` for real: it succeeds, and restores the machine, even when interrupted.

Others may change the pools of huge pages meanwhile, so the tests compare the pages that the demo added and removed.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.daemon import ROOT
from tests.support.filesystems import page_sizes
from tests.support.hugepages import TestPool, alone, resize
from tests.support.leftovers import none_left
from tests.support.poll import DEADLINE
from tests.support.shell import environment

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.users import User


def machine() -> dict[str, object]:
    """All files with the name of a demo's temporary directory."""
    mounts = [line for line in Path("/proc/self/mounts").read_text().splitlines() if "/ktaskfs." in line]
    names = [name for place in ("/tmp", "/dev/shm") for name in os.listdir(place) if name.startswith("ktaskfs.")]
    return {"mounts": mounts, "names": sorted(names)}


def pages_kept(out: str) -> int:
    """The number of huge pages that the demo added to the pool and did not remove, from its output."""
    (added,), (given_back,) = re.findall(r"Reserved (\d+) huge", out), re.findall(r"Gave back (\d+) huge", out)
    return int(added) - int(given_back)


@pytest.fixture
def unchanged() -> Iterator[None]:
    with alone():
        before = machine()
        with none_left():
            yield
        assert machine() == before


@pytest.mark.usefixtures("unchanged")
def test_the_demo_shows_the_main_job() -> None:
    """While somebody else adds pages to the pool, and takes them off after it."""
    out, others = "", 0
    command = ["make", "--no-print-directory", "demo"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as demo:
        assert demo.stdout is not None
        try:
            for line in demo.stdout:
                out += line
                if "Reserved" in line:
                    resize(page_sizes()[0], others := 4)
        finally:
            resize(page_sizes()[0], -others)
    assert demo.returncode == 0, out
    assert others > 0
    assert pages_kept(out) == 0
    assert out.count("\ndone\n") == 2
    assert out.count("\nall zero\n") == 2
    assert "ff ff ff ff" in out
    assert ("times as fast" in out) != ("Others use the CPUs" in out)


@pytest.mark.usefixtures("unchanged")
def test_while_somebody_changes_the_pool_up_and_down_all_the_time() -> None:
    """Either of the two can write a size that is out of date by then, so the sum is put right here."""
    size, stop, rounds = page_sizes()[0], threading.Event(), 0
    pool = TestPool(size, 0)
    before = pool.total

    def changing() -> None:
        nonlocal rounds
        while not stop.wait(0.02):
            resize(size, 4)
            resize(size, -4)
            rounds += 1

    other = threading.Thread(target=changing)
    other.start()
    try:
        command = ["make", "--no-print-directory", "demo"]
        while rounds <= 20:  # again if this process stalled meanwhile
            demo = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=2 * DEADLINE)
            assert demo.returncode == 0, demo.stdout + demo.stderr
            assert demo.stdout.count("\ndone\n") == 2
            assert demo.stdout.count("\nall zero\n") == 2
            assert "All is as it was" in demo.stdout
    finally:
        stop.set()
        other.join()
        resize(size, before - pool.total)


@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["INT", "TERM"])
def test_an_interrupted_demo_puts_everything_back(number: signal.Signals) -> None:
    status = 0
    while status == 0:  # again if it has ended before the signal, because this process stalled
        out = ""
        with subprocess.Popen(
            [ROOT / "scripts/demo.sh"], stdout=subprocess.PIPE, text=True, start_new_session=True
        ) as demo:
            assert demo.stdout is not None
            for line in demo.stdout:
                out += line
                if "/wait" in line:
                    os.killpg(demo.pid, number)  # as a terminal does
                    break
            out += demo.stdout.read()
        status = demo.returncode
        assert pages_kept(out) == 0
    assert status == 128 + number


@pytest.mark.usefixtures("fuse_for_all", "unchanged")
def test_an_ordinary_user_sees_it_on_tmpfs(two_users: tuple[User, User], public_root: Path) -> None:
    user = two_users[0]
    done = subprocess.run(
        [public_root / "scripts/demo.sh"],
        stdin=subprocess.DEVNULL,  # no terminal: sudo, if there is any, cannot ask
        env=environment(user) | {"PATH": "/usr/bin:/bin:/usr/sbin:/sbin"},
        user=user.uid,
        group=user.gid,
        extra_groups=[],
        capture_output=True,
        text=True,
        timeout=2 * DEADLINE,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "uses tmpfs" in done.stdout
    assert "all zero" in done.stdout
