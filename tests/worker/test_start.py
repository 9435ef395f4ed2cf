"""The two ways to start a spawner have the same result, and a daemon does not wait for the spawner's own imports."""

from __future__ import annotations

import json
import os
import re
import select
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import psutil

from ktaskfs.operations.base.registry import find_operations
from ktaskfs.worker.start import SpawnerProcess, fork_spawner, start_spawner
from tests.support.daemon import ROOT
from tests.support.poll import until

if TYPE_CHECKING:
    from collections.abc import Callable


def found(start: Callable[[], SpawnerProcess], planted: Path) -> list[object]:
    """What a spawner is, holds and ends with, that was started by a process with ``planted`` open."""
    os.chdir(ROOT)
    with planted.open("w") as file:
        os.set_inheritable(file.fileno(), True)
        begun = start()
        spawner = psutil.Process(begun.pid)
        wchan = Path(f"/proc/{begun.pid}/wchan")
        until(lambda: bool(spawner.children()) and "poll" in wchan.read_text(), "a spare worker, and a wait for work")
        holds = sorted(re.sub(r"\d+", "N", os.readlink(f"/proc/{begun.pid}/fd/{fd.name}")) for fd in _fds(begun.pid))
        session = os.getsid(begun.pid) == begun.pid
        name, where = spawner.cmdline()[0], spawner.cwd()
    begun.sock.close()
    select.select([begun.pidfd], [], [])
    return [name, where, session, holds, begun.reap()]


STARTS: Final[dict[str, Callable[[], SpawnerProcess]]] = {
    "fork": lambda: fork_spawner(find_operations()),
    "start": start_spawner,
}


def found_by_a_new_python(start: str, planted: Path) -> Any:
    """What ``found`` returns in another process: another test may have moved the environment of this one, and then
    a fork of it gets no title."""
    script = "import json, sys, pathlib; from tests.worker.test_start import STARTS, found\n"
    script += "print(json.dumps(found(STARTS[sys.argv[1]], pathlib.Path(sys.argv[2]))))"
    command = [sys.executable, "-c", script, start, str(planted)]
    return json.loads(subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout)


def _fds(pid: int) -> list[os.DirEntry[str]]:
    with os.scandir(f"/proc/{pid}/fd") as entries:
        return list(entries)


def test_a_forked_spawner_is_as_one_that_was_started(tmp_path: Path) -> None:
    planted = tmp_path / "planted"
    forked = found_by_a_new_python("fork", planted)
    assert forked == found_by_a_new_python("start", planted)
    name, where, session, holds, status = forked
    assert (name, where, session, status) == ("ktaskfs: spawner", "/", True, 0)
    assert str(planted) not in holds


def test_a_daemon_imports_nothing_that_only_a_spawner_needs() -> None:
    script = "import sys, ktaskfs.cli.mount, ktaskfs.daemon, ktaskfs.worker.start; print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert {"ktaskfs.worker.protocol", "ktaskfs.tasks.launcher"} <= set(run.stdout.split())
    assert not {"ktaskfs.worker.run", "ktaskfs.worker.look", "ktaskfs.host.becoming"} & set(run.stdout.split())


def test_an_error_in_a_forked_spawner_is_told_before_it_ends() -> None:
    script = "import os, sys; from ktaskfs.worker import start; sys.modules['ktaskfs.worker.spawner'] = None\n"
    script += "sys.exit(start.fork_spawner({}).reap())"
    run = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 1
    assert "ktaskfs.worker.spawner" in run.stderr.splitlines()[-1]
