"""The example tree, mounted by a separate process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.daemon import ROOT, interpreter
from tests.support.leftovers import none_left
from tests.support.poll import DEADLINE, until
from tests.support.shell import Outcome, environment, run, shell

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.users import User

EXAMPLE = Path("tests/fuse/example.py")
NOTHING_LEFT = {"handles": 0, "streams": 0, "waiting": 0}


class Example:
    """The running example, and actions of its user. ``path`` is the mount point."""

    def __init__(
        self,
        area: Path,
        *options: str,
        user: User | None = None,
        device: str | None = None,
        project: Path = ROOT,
    ) -> None:
        """Mount with ``options``, as ``user`` from the ``project`` that he can read; or serve ``device``."""
        self.path = area / "mount"
        if device is None:  # otherwise it is a mount already, and waits for its server if touched
            self.path.mkdir()
        self.user = user
        self.report = area / "report"
        self.log = area / "log"
        if user is not None:
            os.chown(self.path, user.uid, user.gid)
            self.report.touch()
            os.chown(self.report, user.uid, user.gid)
        point = str(self.path) if device is None else f"{self.path}={device}"
        with self.log.open("ab") as stream:
            self.process = subprocess.Popen(
                [interpreter(project), "-W", "error", str(project / EXAMPLE), point, str(self.report), *options],
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=stream,
                close_fds=device is None,
                env=environment(user) | {"PYTHONPATH": str(project)},
                user=None if user is None else user.uid,
                group=None if user is None else user.gid,
                extra_groups=None if user is None else [],
            )
        until(self._answers, "the mount answers")

    def _answers(self) -> bool:
        assert self.process.poll() is None, self.log.read_text()
        return self.mounted() and run("cat", str(self.path / "hello"), user=self.user).status == 0

    def run(self, *command: str, user: User | None = None, stdin: str = "") -> Outcome:
        """A command with the mount as its working directory."""
        return run(*command, user=user or self.user, stdin=stdin, cwd=self.path)

    def shell(self, script: str, *arguments: str, user: User | None = None) -> Outcome:
        """A script of bash with the mount as its working directory."""
        # Not by cwd=: that is done with the rights of the test, and root may not enter another user's mount.
        return shell(f"cd '{self.path}' && {{ {script}\n}}", *arguments, user=user or self.user)

    def start(self, script: str) -> subprocess.Popen[bytes]:
        """A script of bash that runs beside the test, which waits for it."""
        return subprocess.Popen(["bash", "-c", script], cwd=self.path)

    def cat(self, file: str, *, user: User | None = None) -> str:
        outcome = run("cat", str(self.path / file), user=user or self.user)
        assert outcome.status == 0, outcome.err
        return outcome.out

    def counts(self) -> dict[str, int]:
        """The objects of the server now, without ``counts`` itself, whose text is made before it has a handle.

        ``blocks``: those of Python's allocator, at least one for each object.
        """
        counts: dict[str, int] = json.loads(self.cat("counts"))
        return counts

    def requests(self, script: str, times: int = 100) -> dict[str, int]:
        """The kernel's requests of one run of ``script``, on average, so that the cost of counting disappears."""
        outcome = self.shell(f"echo clear > requests; for ((i = 0; i < {times}; i++)); do {script}; done; cat requests")
        assert outcome.status == 0, outcome.err
        requests: dict[str, int] = json.loads(outcome.out)
        return {name: round(count / times) for name, count in requests.items() if round(count / times)}

    def unmount(self, *flags: str) -> None:
        command = ["umount", *flags] if self.user is None else ["fusermount3", "-u", *flags]
        outcome = run(*command, str(self.path), user=self.user)
        assert outcome.status == 0, outcome.err

    def end(self) -> dict[str, int]:
        """Wait for the server's end, which must be a success; the remaining objects after the mount was gone."""
        assert self.process.wait(DEADLINE) == 0, self.log.read_text()
        left: dict[str, int] = json.loads(self.report.read_text())
        return left

    def close(self) -> None:
        """Unmount if need be. Nothing may be left open, and nothing unforeseen may have been logged."""
        if self.process.poll() is None:
            self.unmount()
        left = self.end()
        assert left == NOTHING_LEFT
        assert self.log.read_text() == ""

    def abandon(self) -> None:
        """Leave neither process nor mount, in any case."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()
        if self.mounted():
            subprocess.run(["umount", "-l", str(self.path)], check=True)

    def mounted(self) -> bool:
        """Whether the mount exists, served or dead."""
        return any(line.split()[1] == str(self.path) for line in Path("/proc/mounts").read_text().splitlines())


@pytest.fixture
def example(root: None, area: Path) -> Iterator[Example]:
    """The example mounted by root for everybody; at the end it is unmounted and nothing may be left."""
    with none_left():
        mounted = Example(area, "allow_other")
        try:
            yield mounted
            mounted.close()
        finally:
            mounted.abandon()
