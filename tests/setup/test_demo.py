"""`make demo` for real: it succeeds, and leaves the machine as it found it, even when interrupted."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.daemon import ROOT
from tests.support.hugepages import LOCK
from tests.support.leftovers import none_left
from tests.support.shell import environment, run

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.users import User

def machine() -> dict[str, object]:
    """All that the demo might change: the pools, and whatever bears the name of its temporary directory."""
    pools = {path: path.read_text() for path in Path("/sys/kernel/mm/hugepages").glob("*/nr_*hugepages")}
    mounts = [line for line in Path("/proc/self/mounts").read_text().splitlines() if "/ktaskfs." in line]
    names = [name for place in ("/tmp", "/dev/shm") for name in os.listdir(place) if name.startswith("ktaskfs.")]
    return {"pools": pools, "mounts": mounts, "names": sorted(names)}


@pytest.fixture
def unchanged() -> Iterator[None]:
    with LOCK.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        before = machine()
        with none_left():
            yield
        assert machine() == before


@pytest.mark.usefixtures("unchanged")
def test_the_demo_shows_the_main_job() -> None:
    done = run("make", "--no-print-directory", "demo", cwd=ROOT, timeout=300)
    assert done.status == 0, done.out + done.err
    assert done.out.count("\ndone\n") == 2
    assert done.out.count("\nall zero\n") == 2
    assert "ff ff ff ff" in done.out
    assert "times as fast" in done.out


@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["INT", "TERM"])
def test_an_interrupted_demo_puts_everything_back(number: signal.Signals) -> None:
    command = [ROOT / "scripts/demo.sh"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as demo:
        assert demo.stdout is not None
        for line in demo.stdout:
            if "/wait" in line:
                os.killpg(demo.pid, number)  # as a terminal does
                break
        demo.stdout.read()
    assert demo.returncode == 128 + number


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
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "uses tmpfs" in done.stdout
    assert "all zero" in done.stdout
