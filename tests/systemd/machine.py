"""A machine of our own whose PID 1 is systemd, with ktaskfs installed."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from ktaskfs.tasks.patience import VARIABLE
from tests.support.daemon import ROOT, in_time
from tests.support.poll import DEADLINE, until
from tests.support.shell import Outcome, run

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

BOOT: Final = Path(__file__).with_name("boot.sh")
INSTALLED: Final = "KTASKFS_TEST_INSTALLED"
"""The variable with a directory of installed files, where processors are emulated: to compile them takes minutes."""
NEEDED: Final = ("systemctl", "systemd-analyze", "dbus-daemon", "unshare", "nsenter", "runuser")
PATIENT: Final = {VARIABLE: str(DEADLINE), "SYSTEMD_BUS_TIMEOUT": f"{DEADLINE:.0f}"}
"""The environment of commands: a daemon answers a start when that has begun or is refused, and systemctl(1) waits for a
systemd that stalls."""
SLOWLY: Final = "rate_max=32K chunk=32K"
"""With these, a task of 64M goes on for half an hour."""
SETUP: Final = """
useradd ann
useradd bob
systemd-sysusers
usermod --append --groups ktask ann
systemctl --quiet enable ktaskfs.service
cat >/etc/systemd/system/broken.service <<END
[Service]
Type=oneshot
ExecStart=false
[Install]
WantedBy=multi-user.target
END
systemctl --quiet enable broken.service
"""
"""The actions of an administrator between installation and boot; and a unit that fails and is not part of ktaskfs."""


class Machine:
    """A booted one. ``root`` is its root directory as seen from here."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    @property
    def root(self) -> Path:
        return Path("/proc", (self._directory / "init").read_text().strip(), "root")

    @property
    def prefix(self) -> list[str]:
        """The words before a command that runs inside."""
        return [str(BOOT), "exec", str(self._directory)]

    def run(self, *command: str, user: str | None = None, timeout: float = 4 * DEADLINE) -> Outcome:
        """Run ``command`` inside to its end, as ``user`` if given, with PATIENT; ``timeout`` in seconds."""
        as_user = ["runuser", "-u", user, "--"] if user else []
        return run(*self.prefix, *as_user, *command, env=PATIENT, timeout=timeout)

    def sh(self, script: str, *, user: str | None = None, timeout: float = 4 * DEADLINE) -> Outcome:
        """Run a script of bash inside."""
        return self.run("bash", "-c", script, user=user, timeout=timeout)

    def out(self, *command: str, user: str | None = None) -> str:
        """The output of ``command``, which must succeed."""
        outcome = self.run(*command, user=user)
        assert outcome.status == 0, outcome
        return outcome.out

    def show(self, unit: str, what: str) -> str:
        """A property of a unit, as systemctl(1) shows it."""
        return self.out("systemctl", "show", "--value", f"--property={what}", unit).strip()

    def is_mounted(self, where: str = "/run/ktaskfs") -> bool:
        """Whether a live ktaskfs is mounted there; of an automount, without setting it off."""
        mounts = self.out("cat", "/proc/self/mounts").splitlines()
        return any(line.split()[1:3] == [where, "fuse.ktaskfs"] for line in mounts) and (
            self.run("cat", f"{where}/version").status == 0
        )

    def until_logged(self, words: str, *arguments: str) -> None:
        """Return when the lines that journalctl(1) shows have ``words``: the journal may be late."""
        until(lambda: words in self.out("journalctl", *arguments), f"the journal has: {words}")

    def until_mounted(self, where: str = "/run/ktaskfs") -> None:
        until(lambda: self.is_mounted(where), f"{where} answers")

    def daemons(self) -> list[str]:
        """The command lines of all daemons, workers' and spawners' excepted."""
        found = self.run("pgrep", "--list-full", "--full", "ktaskfs mount").out.splitlines()
        return [line for line in found if "pgrep" not in line]

    def start_slow_task(self, name: str, *, user: str = "ann", mount: str = "/run/ktaskfs") -> None:
        """A task that goes on until ``finish_task``."""
        spec = f"fallocate path=/dev/shm/{name} length=64M {SLOWLY} name={name}"
        outcome = in_time(lambda: self.sh(f'echo "{spec}" > {mount}/tasks/control', user=user))
        assert outcome.status == 0, outcome

    def start(self, unit: str) -> None:
        """Start a unit, even if other tests have started it many times."""
        self.run("systemctl", "reset-failed", unit)
        done = self.run("systemctl", "start", unit)
        assert done.status == 0, (done, self.run("journalctl", "--no-pager", "--lines=20", f"--unit={unit}").out)

    def finish_task(self, name: str, *, user: str = "ann", mount: str = "/run/ktaskfs") -> None:
        """Let it run, and see it done."""
        script = f"echo max > {mount}/tasks/{name}/rate_max && tail -n 1 {mount}/tasks/{name}/wait"
        done = self.sh(script, user=user)
        if done != Outcome(0, "done\n", ""):
            error = self.run("cat", f"{mount}/tasks/{name}/error").out
            log = self.run("journalctl", "--no-pager", "--lines=20", "--identifier=ktaskfs").out
            pytest.fail(f"{done}: {error}{log}")
        assert self.sh(f"stat -c '%U %b %B' /dev/shm/{name}").out.split()[0] == user
        assert self.sh(f"rm /dev/shm/{name}").status == 0

    def workers(self) -> set[str]:
        """The pids of all workers."""
        return set(self.run("pgrep", "--full", "^ktask/").out.split())


def install(directory: Path) -> None:
    """The files of ktaskfs with PREFIX=/usr, below ``directory``."""
    subprocess.run([sys.executable, ROOT / "packaging/install.py", "install", "/usr", directory], check=True)


@contextlib.contextmanager
def booted(setup: str = SETUP) -> Iterator[Machine]:
    """Install ktaskfs with PREFIX=/usr, run ``setup``, and boot; skips where that cannot be done."""

    def fill(layer: Path) -> None:
        if INSTALLED in os.environ:
            shutil.copytree(os.environ[INSTALLED], layer, symlinks=True, dirs_exist_ok=True)
        else:
            install(layer)

    with booted_with(fill, setup) as machine:
        yield machine


@contextlib.contextmanager
def booted_with(fill: Callable[[Path], object], setup: str, system: Path = Path("/")) -> Iterator[Machine]:
    """Boot ``system`` after ``setup`` in there, with the files that ``fill`` puts into a directory for its root.

    Skips where that cannot be done.
    """
    missing = [name for name in NEEDED if shutil.which(name) is None]
    if missing:
        pytest.skip(f"not installed: {' '.join(missing)}")
    with tempfile.TemporaryDirectory(prefix="kt-systemd-", dir="/var/tmp") as path:
        directory, layer = Path(path, Path(path).name), Path(path, "layer")
        Path(path).chmod(0o755)
        directory.mkdir()
        layer.mkdir()
        fill(layer)
        command = [str(BOOT), "start", str(directory), str(layer), setup, str(system)]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as boot:
            assert boot.stderr is not None
            said = boot.stderr.read()
        assert boot.returncode == 0, said
        try:
            yield Machine(directory)
        finally:
            subprocess.run([BOOT, "stop", directory], check=True)
