"""Commands that outlive the daemon: they go on with the next one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

from tests.support.daemon import Mount
from tests.support.poll import DEADLINE, until
from tests.support.slow import stop

if TYPE_CHECKING:
    import subprocess

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
    with command.started("run", "--quiet", "checksum", f"path={memory}/file") as follower:
        until(lambda: sleeps(follower), "it has found a dead mount")
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
    with command.started(*words.split()) as process:
        until(lambda: sleeps(process) or process.poll() is not None, "it has found a dead mount")
        again = Mount(mount.path, statedir=mount.statedir, log=area / "again")
        try:
            if verb != "wait":
                assert process.wait(DEADLINE) == 0, process.communicate()
        finally:
            stop(again, slow)
        assert process.wait(DEADLINE) == (3 if verb == "wait" else 0), process.communicate()
    again.close()
    mount.kill()


def sleeps(process: subprocess.Popen[str]) -> bool:
    """Whether the command, or the child that does its work, is in clock_nanosleep(2)."""
    found = [psutil.Process(process.pid), *psutil.Process(process.pid).children()]
    return any("nanosleep" in Path(f"/proc/{each.pid}/wchan").read_text() for each in found)
