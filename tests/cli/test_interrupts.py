"""^C in a command that has just begun, and where whoever began the command ignores it."""

from __future__ import annotations

import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Final

from tests.support.daemon import ROOT
from tests.support.poll import DEADLINE
from tests.support.shell import Outcome, run

if TYPE_CHECKING:
    from pathlib import Path

    from tests.cli.conftest import Command


def test_it_cancels_nothing(command: Command, memory: Path) -> None:
    """As in the background of a script, or below `trap '' INT`: the command goes on when the script is interrupted."""
    words = command.words("run", f"clear path={memory}/file name=on rate_max=1K chunk=4K")
    ignoring = ["sh", "-c", "trap '' INT; exec \"$@\"", "-", *words]
    with subprocess.Popen(ignoring, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert process.stderr.readline().startswith("on: ")
        process.send_signal(signal.SIGINT)
        command.mount.write("tasks/on/rate_max", "max")
        assert process.wait(DEADLINE) == 0
    assert command.mount.read("tasks/on/state") == "done\n"


PRESSED: Final = """
import os, signal, sys
class Press:
    def find_spec(self, name, *_):
        if name == "argparse":
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Press())
from ktaskfs.cli.main import main
raise SystemExit(main(["ls"]))
"""
"""The command, with ^C while it imports what it needs to understand its arguments."""


def test_it_ends_a_command_that_has_just_begun_without_a_traceback() -> None:
    assert run(sys.executable, "-c", PRESSED, cwd=ROOT) == Outcome(-signal.SIGINT, "", "")
