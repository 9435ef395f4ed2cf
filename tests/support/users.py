"""Two real ordinary users, made for the run and removed after it."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from tests.support.poll import until

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass(frozen=True)
class User:
    """An ordinary user, with a primary group of the same name and no other group."""

    name: str
    uid: int
    gid: int
    home: Path


@contextlib.contextmanager
def ordinary_user(label: str) -> Iterator[User]:
    """Make a user ``kt<label><random>``; remove the user, the home and any process left over at the end."""
    home = Path(tempfile.mkdtemp(prefix=f"kt{label}"))
    name = home.name  # as unused as the directory, also in the same run
    _change_accounts("useradd", "--user-group", "--no-create-home", "--home-dir", str(home), name)
    try:
        entry = pwd.getpwnam(name)
        os.chown(home, entry.pw_uid, entry.pw_gid)
        yield User(name, entry.pw_uid, entry.pw_gid, home)
    finally:
        for process in psutil.process_iter(["uids"]):
            if process.info["uids"] and process.info["uids"].real == entry.pw_uid:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.send_signal(signal.SIGKILL)
        _change_accounts("userdel", name)
        shutil.rmtree(home, ignore_errors=True)


def _change_accounts(*command: str) -> None:
    """Run a tool of the shadow suite; they all take one lock and give up at once while another has it."""

    def done() -> bool:
        last = subprocess.run(command, capture_output=True, text=True, check=False)
        busy = "try again later" in last.stderr or "currently used by process" in last.stderr
        if last.returncode != 0 and not busy:
            raise AssertionError(f"{command}: {last.stderr}")
        return last.returncode == 0

    until(done, " ".join(command))
