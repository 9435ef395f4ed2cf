"""The base of a long run: users, filesystems, huge pages that come and go; all of it is restored at the end."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import psutil
import pytest

from tests.soak.actor import DOOR, PAGE_SIZE, WHO
from tests.support import filesystems
from tests.support.daemon import ROOT
from tests.support.hugepages import LOCK, reserved
from tests.support.leftovers import none_left
from tests.support.shell import run
from tests.support.users import User, ordinary_user

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

POOL_PAGES: Final = 40
EPISODE: Final = 20.0
"""Seconds for which the pool's lock is held at a time; tests of other runs wait for it."""
GAP: Final = 40.0
"""Seconds between two requests for it."""


@dataclass(frozen=True)
class Ground:
    """``users`` has None for root. ``root`` is the project, where every user can read it."""

    area: Path
    users: dict[str, User | None]
    root: Path


@contextlib.contextmanager
def ground() -> Iterator[Ground]:
    """Everything that a run needs but a mount; at the end no mount, process, user or file is left, or it raises."""
    with contextlib.ExitStack() as stack:
        area = Path(tempfile.mkdtemp(prefix="kt-soak-"))
        stack.callback(shutil.rmtree, area)
        area.chmod(0o755)
        disk = Path(tempfile.mkdtemp(prefix="kt-soak-", dir="/var/tmp"))
        stack.callback(shutil.rmtree, disk)
        disk.chmod(0o755)
        (area / "disk").symlink_to(disk)
        users: dict[str, User | None] = {"root": None}
        for who in WHO[1:]:
            users[who] = stack.enter_context(ordinary_user(who))
        stack.enter_context(filesystems.tmpfs(area / "tmpfs", 512 << 20, "mode=0755"))
        stack.enter_context(filesystems.hugetlbfs(area / "huge", PAGE_SIZE, "mode=0755"))
        stack.enter_context(filesystems.tmpfs(area / "collapsible", 64 << 20, "mode=0755,huge=advise"))
        for who, user in users.items():
            for place in (area / "tmpfs", area / "huge", area / "collapsible", disk):
                directory = place / who
                directory.mkdir(mode=0o700)
                if user is not None:
                    os.chown(directory, user.uid, user.gid)
        readable = run("test", "-r", str(ROOT / "pyproject.toml"), user=users["a"]).status == 0
        root = ROOT if readable else stack.enter_context(filesystems.public_view(ROOT))
        stack.enter_context(none_left())
        yield Ground(area, users, root)


def reap_orphans(ours: Collection[int]) -> None:
    """Read the exit status of dead adopted children, except ``ours``, which others wait for."""
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.NoSuchProcess, ChildProcessError):
            if child.pid not in ours and child.status() == psutil.STATUS_ZOMBIE:
                os.waitpid(child.pid, os.WNOHANG)


def others_have_the_pool() -> bool:
    """Whether ``reserved`` would wait now, without a way to stop it."""
    with LOCK.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


class HugePages(threading.Thread):
    """Lets the actors have huge pages for a while, again and again, so that other runs get theirs in between."""

    def __init__(self, area: Path) -> None:
        super().__init__(name="huge pages")
        self.episodes = 0
        self.missed = 0
        self.broken: list[str] = []
        self._door = area / DOOR
        self._stop_asked = threading.Event()
        self._door.write_text("")

    def stop(self) -> None:
        """End it, and wait until the pool has its old size."""
        self._stop_asked.set()
        self.join()

    def run(self) -> None:
        with self._door.open() as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            while not self._stop_asked.is_set():
                if others_have_the_pool():
                    self._stop_asked.wait(1)
                    continue
                try:
                    with reserved(PAGE_SIZE, POOL_PAGES):
                        self._open_for_a_while(lock.fileno())
                except pytest.skip.Exception:  # no memory for the pool just now
                    self.missed += 1
                except AssertionError as error:
                    self.broken.append(f"huge pages: {error}")
                self._stop_asked.wait(GAP)

    def _open_for_a_while(self, lock: int) -> None:
        self.episodes += 1
        self._door.write_text("open")
        fcntl.flock(lock, fcntl.LOCK_UN)
        self._stop_asked.wait(EPISODE)
        self._door.write_text("")
        fcntl.flock(lock, fcntl.LOCK_EX)  # when the last actor has let go of its pages
