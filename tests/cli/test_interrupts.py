"""^C where whoever began the command ignores it."""

from __future__ import annotations

import signal
import subprocess
from typing import TYPE_CHECKING

from tests.support.daemon import ROOT
from tests.support.poll import DEADLINE

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
