"""The common code of the benchmarks."""

from __future__ import annotations

import signal
import subprocess
import sys
from typing import TYPE_CHECKING

from tests.support.daemon import ROOT
from tests.support.poll import DEADLINE, until

if TYPE_CHECKING:
    from pathlib import Path

CODE = """
import pathlib, signal, sys
from bench import harness
file = pathlib.Path(sys.argv.pop())
def build(settings):
    try:
        file.touch()
        signal.pause()
    finally:
        file.unlink()
harness.main("example", "An example", build)
"""


def test_sigterm_ends_a_benchmark_with_its_cleaning_up(tmp_path: Path) -> None:
    file = tmp_path / "mounted"
    process = subprocess.Popen([sys.executable, "-c", CODE, "--smoke", str(file)], cwd=ROOT)
    until(file.exists, "the benchmark runs")
    process.send_signal(signal.SIGTERM)
    assert process.wait(DEADLINE) == 128 + signal.SIGTERM
    assert not file.exists()
