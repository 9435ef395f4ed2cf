"""The real daemon, in a separate process, on a real mount."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from tests.support.poll import DEADLINE, until
from tests.support.shell import Outcome, environment, run, shell

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tests.support.users import User

ROOT = Path(__file__).resolve().parents[2]
SHOWN = 4000
"""Characters of a log that are shown on each side of a fault."""


def interpreter(root: Path) -> str:
    """The Python that runs these tests, by its path below ``root`` if it lies in the project's own .venv."""
    python = Path(sys.executable)
    return str(root / python.relative_to(ROOT)) if python.is_relative_to(ROOT) else sys.executable


def in_time(command: Callable[[], Outcome]) -> Outcome:
    """The outcome of ``command``, repeated while a machine with too much to do has no time to examine its process.

    open(2) fails with ETIMEDOUT then, so nothing was written or read.
    """
    found: list[Outcome] = []

    def is_examined() -> bool:
        found[:] = [command()]
        outcome = found[0]
        return outcome.errname != "ETIMEDOUT" or outcome.out != "" or "writ" in outcome.err

    until(is_examined, "the process is examined in time")
    (last,) = found
    return last


class Mount:
    """A running daemon, and the actions of a user of its mount. ``path`` is the mount point."""

    def __init__(
        self,
        path: Path,
        *,
        statedir: Path,
        log: Path,
        options: str = "",
        user: User | None = None,
        root: Path = ROOT,
        prefix: Sequence[str] = (),
    ) -> None:
        """Mount on the directory ``path`` and return when the mount answers; ``options`` as after ``-o``.

        ``root`` is where the project is, as seen by ``user``; ``prefix`` is a command that runs the daemon.
        """
        self.path = path
        self.statedir = statedir
        self.log = log
        self.user = user
        self._killed = False
        with log.open("ab") as stream:
            self.process = subprocess.Popen(
                [*prefix, interpreter(root), "-W", "error", "-m", "ktaskfs.cli.main", "mount", "--foreground"]
                + ["-o", ",".join(filter(None, [f"statedir={statedir}", options])), str(path)],
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=stream,
                cwd=root,
                env=environment(user),
                user=None if user is None else user.uid,
                group=None if user is None else user.gid,
                extra_groups=None if user is None else [],
            )
        try:
            until(self._answers, f"the mount on {path} answers")
            until(lambda: not self._probes(), "the names of the mount are pinned")
        except BaseException:
            self.process.kill()
            self.process.wait()
            subprocess.run(["umount", "-l", str(path)], capture_output=True, check=False)
            raise

    @property
    def pid(self) -> int:
        """The daemon's."""
        return self.process.pid

    def _probes(self) -> bool:
        """Whether a process still opens names, or the daemon, which reaps it afterwards, has not yet received them."""
        for child in psutil.Process(self.pid).children(recursive=True):
            try:
                if child.cmdline()[:1] == ["ktaskfs: probe"] or child.status() == psutil.STATUS_ZOMBIE:
                    return True
            except psutil.ZombieProcess:
                return True
            except psutil.NoSuchProcess:
                pass
        return False

    def _answers(self) -> bool:
        status = self.process.poll()
        assert status is None, f"the daemon ended with status {status}:\n{self.log.read_text()}"
        # Not before the daemon itself has read from the mount: umount(8) would find it busy.
        return "mounted on" in self.log.read_text() and self.cat("version", user=self.user).status == 0

    def is_mounted(self) -> bool:
        """Whether something is mounted there."""
        return any(line.split()[1] == str(self.path) for line in Path("/proc/self/mounts").read_text().splitlines())

    def write(self, file: str, text: str, *, user: User | None = None) -> tuple[int, str | None]:
        """``echo text > file`` by bash: its status, and the errno's name if bash printed one.

        Bash writes line by line; for several lines in one write(2), or bytes, see ``write_once``.
        """
        outcome = in_time(lambda: shell('echo "$1" > "$2"', text, str(self.path / file), user=user))
        return outcome.status, outcome.errname

    def write_once(self, file: str, data: str | bytes, *, user: User | None = None) -> tuple[int, str | None]:
        """All of ``data`` in one write(2), by dd: its status and the errno's name."""
        content = data.encode() if isinstance(data, str) else data
        command = ["dd", f"of={self.path / file}", f"bs={max(1, len(content))}", "iflag=fullblock", "conv=notrunc"]
        outcome = in_time(lambda: run(*command, "status=none", stdin=content, user=user))
        return outcome.status, outcome.errname

    def cat(self, file: str, *, user: User | None = None) -> Outcome:
        """The outcome of ``cat file``. For ``tasks/NAME/wait`` it returns when the task has ended."""
        return in_time(lambda: run("cat", str(self.path / file), user=user))

    def read(self, file: str, *, user: User | None = None) -> str:
        """The output of ``cat file``, which must succeed."""
        outcome = self.cat(file, user=user)
        assert outcome.status == 0, outcome.err
        return outcome.out

    def shell(self, script: str, *arguments: str, user: User | None = None) -> Outcome:
        """Run a script of bash with the mount as its working directory."""
        return shell(script, *arguments, user=user, cwd=self.path)

    def kill(self) -> None:
        """SIGKILL the daemon and take the dead mount away; ``close`` then asks nothing of its status."""
        self._killed = True
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        subprocess.run(["umount", "-l", str(self.path)], capture_output=True, check=False)

    def _umount(self) -> bool:
        """Unmount it; whether that worked. It fails while a process uses the mount."""
        done = run("fusermount3" if self.user else "umount", *["-u"] * bool(self.user), str(self.path))
        assert done.status == 0 or "busy" in done.err, done
        return done.status == 0

    def close(self) -> None:
        """Unmount with umount(8); the daemon must then end by itself, with status 0 and a clean log."""
        if self.process.poll() is None:
            try:
                until(self._umount, "umount: what a test has killed may still be ending")
            except AssertionError:
                self.kill()
                raise
            try:
                self.process.wait(DEADLINE)
            except subprocess.TimeoutExpired:
                waits = waits_of(self.process.pid)
                self.kill()
                message = f"the daemon did not end after umount:\n{self.log.read_text()}\n{waits}"
                raise AssertionError(message) from None
        with contextlib.suppress(FileNotFoundError):
            log = self.log.read_text()
            assert "Traceback" not in log, around("Traceback", log)
            assert self._killed or self.process.returncode == 0, f"status {self.process.returncode}:\n{log}"
        assert not self.is_mounted()


def around(word: str, log: str) -> str:
    """The lines of a log about a word: a report may cut a long log where it matters."""
    place = log.find(word)
    return log[max(place - SHOWN, 0) : place + SHOWN]


def waits_of(pid: int) -> str:
    """What a process that hangs waits for: the kernel's stack of each thread, its children, and its FUSE mounts."""
    threads = [path.name + "\n" + (path / "stack").read_text() for path in Path(f"/proc/{pid}/task").iterdir()]
    children = [str(child) for child in psutil.Process(pid).children(recursive=True)]
    lines = Path(f"/proc/{pid}/mountinfo").read_text().splitlines()
    return "\n".join([*threads, *children, *(line for line in lines if "fuse.ktaskfs" in line)])
