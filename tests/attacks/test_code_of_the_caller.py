"""A caller plants a library in its root directory, and the worker has an unforeseen error there."""

from __future__ import annotations

import encodings
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ktaskfs.host.topology import usable_cpus
from tests.support.daemon import ROOT
from tests.support.poll import DEADLINE, until

if TYPE_CHECKING:
    from tests.conftest import MountMaker
    from tests.support.users import User

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can change its root directory"),
    pytest.mark.skipif(len(usable_cpus()) < 2, reason="there is one CPU, and no second thread"),
]

CALLER = """
import os, resource, sys, time
area, uid = sys.argv[1], int(sys.argv[2])
proc = os.open("/proc", os.O_PATH)
os.chroot(area)
os.chdir("/")
os.setgroups([])
os.setgid(uid)
os.setuid(uid)

def write(name, text):
    with open(f"/mount0/{name}", "w") as file:
        file.write(text + "\\n")

def stat():
    with open("/mount0/tasks/held/stat") as file:
        return dict(line.split(maxsplit=1) for line in file)

write("tasks/control", "checksum path=/memory/file name=held rate_max=1 max_threads=1 chunk=1M")
while stat()["state"].strip() != "running" or stat()["done"].strip() == "0":
    time.sleep(0.01)
write("tasks/held/max_threads", "2")
while stat()["threads"].strip() != "2":
    time.sleep(0.01)
pid = int(stat()["pid"])
with open(os.open(f"{pid}/statm", os.O_RDONLY, dir_fd=proc)) as file:
    size = int(file.read().split()[0]) * os.sysconf("SC_PAGESIZE") + int(sys.argv[3])
resource.prlimit(pid, resource.RLIMIT_AS, (size, size))
write("tasks/held/rate_max", "1M")  # the threads take chunks in turns
with open("/mount0/tasks/held/wait") as wait:
    print(wait.read().split()[-1])
with open("/mount0/tasks/held/error") as error:
    print(error.read())
"""
LITTLE = 110_000
"""Bytes that are less than a buffer for reading."""
MALLOC = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": str(LITTLE), "MALLOC_TRIM_THRESHOLD_": str(LITTLE)}
"""malloc(3) keeps no room for a buffer: without an arena for each thread it maps a large piece anew (mallopt(3))."""
EVIL = """
with open("/memory/ran", "a") as marker:
    marker.write("the caller's code ran")
"""


def plant(area: Path) -> None:
    """A library where the worker would look for it in the caller's root; its sources name a codec of the caller's."""
    for source in [*(ROOT / "ktaskfs").rglob("*.py"), *Path(os.__file__).parent.glob("*.py")]:
        there = area / source.relative_to("/")
        there.parent.mkdir(parents=True, exist_ok=True)
        there.write_text("# coding: evil\n" * 2)
    for directory in {Path(encodings.__file__).parent, *(Path(each) / "encodings" for each in sys.path if each)}:
        there = area / directory.relative_to("/") / "evil.py"
        there.parent.mkdir(parents=True, exist_ok=True)
        there.write_text(EVIL)


def test_no_code_of_its_own_runs_when_memory_runs_out(
    monkeypatch: pytest.MonkeyPatch, mount_maker: MountMaker, area: Path, memory: Path, two_users: tuple[User, User]
) -> None:
    """The caller takes address space from its worker, whose second thread then has none for its buffer."""
    for name, value in MALLOC.items():
        monkeypatch.setenv(name, value)
    mount = mount_maker("mode=0666")
    plant(area)
    (memory / "file").write_bytes(bytes(64 << 20))
    os.chown(memory / "file", two_users[0].uid, -1)
    command = [sys.executable, "-I", "-c", CALLER, str(area), str(two_users[0].uid), str(LITTLE)]
    outcome = subprocess.run(command, capture_output=True, text=True, timeout=2 * DEADLINE, check=False)
    assert outcome.stderr == ""
    assert outcome.stdout.startswith("failed\n")
    assert "MemoryError" in outcome.stdout
    assert not (memory / "ran").exists()
    # An unforeseen error; the log has the place. The worker writes its traceback while the daemon tells of the end.
    until(lambda: "buffer.py" in mount.log.read_text(), "the place is in the log")
    log = mount.log.read_text()
    assert "evil" not in log
    mount.log.write_text(log.replace("Traceback", "(seen)"))
