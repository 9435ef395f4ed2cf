"""Commands that outlive the daemon: they continue with the next one."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Final

import psutil
import pytest

from ktaskfs.cli.mounted import Mounted
from ktaskfs.errors import DaemonAway
from tests.support.daemon import ROOT, Mount
from tests.support.poll import DEADLINE, until
from tests.support.slow import stop

if TYPE_CHECKING:
    from tests.cli.conftest import Command


def test_it_goes_on_when_the_daemon_is_started_anew(command: Command, area: Path, slow: str, memory: Path) -> None:
    mount = command.mount
    spec = [f"path={memory}/slow-{slow}", f"name={slow}"]
    with command.started("run", "--json", "--if-exists=join", "clear", *spec) as follower:
        assert follower.stdout is not None
        assert json.loads(follower.stdout.readline())["stale"] is False
        mount.process.kill()
        mount.process.wait()
        while not json.loads(follower.stdout.readline())["stale"]:
            pass
        again = Mount(mount.path, statedir=mount.statedir, log=area / "again")
        while json.loads(follower.stdout.readline())["stale"]:
            pass
        stop(again, slow)
        assert follower.wait(DEADLINE) == 3
        assert json.loads(follower.stdout.read().splitlines()[-1])["state"] == "cancelled"
    again.close()
    mount.kill()


def test_a_start_waits_for_the_daemon(command: Command, area: Path, memory: Path) -> None:
    mount = command.mount
    mount.process.kill()
    mount.process.wait()
    with patient(command, "run", "--quiet", "checksum", f"path={memory}/file") as follower:
        until_asleep(follower)
        again = Mount(mount.path, statedir=mount.statedir, log=area / "again")
        assert follower.wait(DEADLINE) == 0, follower.communicate()
    again.close()
    mount.kill()


@pytest.mark.parametrize("words", ["wait slow*", "set slow* nice=5", "pause slow*"])
def test_a_command_that_looks_for_names_waits_for_the_daemon(
    command: Command, area: Path, slow: str, words: str
) -> None:
    verb, *_ = words.split()
    mount = command.mount
    mount.process.kill()
    mount.process.wait()
    with patient(command, *words.split()) as process:
        until_asleep(process)
        again = Mount(mount.path, statedir=mount.statedir, log=area / "again")
        try:
            if verb != "wait":
                assert process.wait(DEADLINE) == 0, process.communicate()
        finally:
            stop(again, slow)
        assert process.wait(DEADLINE) == (3 if verb == "wait" else 0), process.communicate()
    again.close()
    mount.kill()


PATIENT: Final = f"""
import sys
from ktaskfs.cli.main import main
from ktaskfs.cli.mounted import Mounted
Mounted.__new__.__defaults__ = ({4 * DEADLINE},)
sys.exit(main())
"""
"""The command, which waits longer for the next daemon than a process may stall."""


def patient(command: Command, *arguments: str) -> subprocess.Popen[str]:
    """Starts it, whose output goes into pipes."""
    python, _, _, *words = command.words(*arguments)
    pipe = subprocess.PIPE
    return subprocess.Popen([python, "-c", PATIENT, *words], cwd=ROOT, stdout=pipe, stderr=pipe, text=True)


def until_asleep(process: subprocess.Popen[str]) -> None:
    """Return when the command sleeps, because it has found a dead mount."""
    until(lambda: _sleeps(process) or process.poll() is not None, "it has found a dead mount")
    assert process.poll() is None, process.communicate()


def _sleeps(process: subprocess.Popen[str]) -> bool:
    """Whether a process of the command is in clock_nanosleep(2)."""
    with contextlib.suppress(psutil.NoSuchProcess, FileNotFoundError):
        each = [psutil.Process(process.pid), *psutil.Process(process.pid).children()]
        return any("nanosleep" in Path(f"/proc/{one.pid}/wchan").read_text() for one in each)
    return False


def test_a_daemon_that_ends_during_the_write_is_one_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks/control").touch()

    def write(fd: int, data: bytes) -> int:
        raise OSError(errno.ENOTCONN, os.strerror(errno.ENOTCONN))

    monkeypatch.setattr(os, "write", write)
    with pytest.raises(DaemonAway, match="ended during the command") as caught:
        Mounted(str(tmp_path), patience=0).start("clear path=/x")
    monkeypatch.undo()
    assert isinstance(caught.value.__cause__, OSError)
