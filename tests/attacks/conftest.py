"""Attackers: processes of a user that exists nowhere else, which hold or flood what all users share."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import IO, TYPE_CHECKING

import pytest

from tests.support import filesystems
from tests.support.poll import DEADLINE
from tests.support.shell import environment
from tests.support.users import User

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.daemon import Mount

HERE = Path(__file__).parent
FIRST_UID = 4_000_000_000
"""Beyond the ids of accounts and of subordinate ids, which begin at 100,000 and 524,288."""


class Attack:
    """Processes of the attacker, and commands of other users that may hang because of them."""

    def __init__(self, attacker: User) -> None:
        self._attacker = attacker
        self._attackers: list[subprocess.Popen[bytes]] = []
        self._commands: list[subprocess.Popen[bytes]] = []

    def __call__(self, script: str, *arguments: str, as_root: bool = False) -> None:
        """Start ``tests/attacks/SCRIPT ARGUMENTS`` as the attacker; returns when it reports that it is ready."""
        user = None if as_root else self._attacker
        with (HERE / script).open("rb") as source:
            process = self._start([sys.executable, "-I", "-", *arguments], Path("/"), user, source)
        self._attackers.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() != b"", "the attack has begun"

    def calls(self) -> int:
        """How many system calls of the last attack, one of flood.py, were answered."""
        process = self._attackers[-1]
        assert process.stdout is not None
        process.send_signal(signal.SIGUSR1)
        return int(process.stdout.readline())

    def holds_lease(self) -> bool:
        """Whether the last attack, lease.py, has what it took; the kernel takes it away from who delays others long."""
        pid = str(self._attackers[-1].pid)
        locks = [line.split() for line in Path("/proc/locks").read_text().splitlines()]
        return any((each[1:3], each[4]) == (["LEASE", "ACTIVE"], pid) for each in locks)

    def begin(self, mount: Mount, script: str, *arguments: str, user: User | None = None) -> subprocess.Popen[bytes]:
        """Start ``script`` of bash with the mount as its working directory."""
        command = self._start(["bash", "-c", script, "bash", *arguments], mount.path, user)
        self._commands.append(command)
        return command

    def answered(self, mount: Mount, script: str, *arguments: str, user: User | None = None) -> bool:
        """Whether ``script`` of bash, with the mount as its working directory, succeeds at all."""
        command = self.begin(mount, script, *arguments, user=user)
        try:
            return command.wait(DEADLINE) == 0
        except subprocess.TimeoutExpired:
            return False

    def _start(
        self, command: list[str], cwd: Path, user: User | None, stdin: IO[bytes] | None = None
    ) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            command,
            stdin=stdin,
            stdout=subprocess.PIPE,
            cwd=cwd,
            env=environment(user),
            user=None if user is None else user.uid,
            group=None if user is None else user.gid,
            extra_groups=None if user is None else [],
            start_new_session=True,
        )

    def end(self) -> None:
        """Kill the attackers, which ends what they hold; then kill the processes that hung."""
        for process in (*self._attackers, *self._commands):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        for process in (*self._attackers, *self._commands):
            process.wait()
            assert process.stdout is not None
            process.stdout.close()


def stranger(number: int) -> User:
    """A user without an account, whom no other run of the tests has."""
    uid = FIRST_UID + os.getpid() * 4 + number
    return User(f"stranger{number}", uid, uid, Path("/"))


@pytest.fixture
def memory(root: None, area: Path) -> Iterator[Path]:
    """A tmpfs open to every user."""
    with filesystems.tmpfs(area / "memory", 256 << 20) as path:
        yield path


@pytest.fixture
def attacker() -> User:
    return stranger(0)


@pytest.fixture
def victim() -> User:
    return stranger(1)


@pytest.fixture
def attack(attacker: User, fuse_for_all: None) -> Iterator[Attack]:
    """At the end of the test the attackers are killed, which ends what they hold."""
    if os.geteuid() != 0:
        pytest.skip("only root can become another user")
    begun = Attack(attacker)
    try:
        yield begun
    finally:
        begun.end()
