"""Runs the tests of interrupted_runs in a process that is killed if it hangs, on this Python and on newer ones.

A hanging run swallows every exception of a signal handler, so a time limit within its process cannot end it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from tests.support.daemon import ROOT
from tests.support.newest import NEWEST, install
from tests.support.packages import Unavailable
from tests.support.poll import DEADLINE, until

if TYPE_CHECKING:
    from collections.abc import Sequence

CASES: Final = Path(__file__).with_name("interrupted_runs.py")
LIMIT: Final = 500
"""Seconds for all cases, ten times what they take on two busy CPUs."""

pytestmark = pytest.mark.timeout(LIMIT + 60)


def run_to_the_end(command: Sequence[str], environment: dict[str, str], limit: float) -> str:
    """Returns the output. Fails if the command does, or (with all its stacks) if it runs for ``limit`` seconds."""
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    try:
        output, _ = process.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGABRT)  # to which pytest's faulthandler answers with all stacks
        output, _ = process.communicate(timeout=DEADLINE)
        output = f"still running after {limit} seconds\n{output}"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 0, output
    return output


def run_cases(python: str | Path) -> None:
    """Uses this environment's pytest, which is pure Python, without plugins, because some are not."""
    options = ("-q", "-x", "-c", os.devnull, "--noconftest", "--import-mode=importlib", "-p", "no:cacheprovider")
    path = os.pathsep.join((str(ROOT), *(each for each in sys.path if "site-packages" in each)))
    environment = dict(os.environ, PYTHONPATH=path, PYTHONDONTWRITEBYTECODE="1", PYTEST_DISABLE_PLUGIN_AUTOLOAD="1")
    command = [str(python), "-m", "pytest", *options, f"--rootdir={ROOT}", str(CASES)]
    assert " passed" in run_to_the_end(command, environment, LIMIT)


def test_on_this_python() -> None:
    run_cases(sys.executable)


@pytest.mark.parametrize(("release", "wanted"), [("trixie", (3, 13)), (NEWEST, (3, 14))])
def test_on_a_newer_python(root: None, tmp_path: Path, release: str, wanted: tuple[int, int]) -> None:
    """On 3.14 and later, an exception can come after a lock is taken and before the block that releases it."""
    try:
        python = install("python", ["python3"], release=release).python(tmp_path / "python")
    except Unavailable as reason:
        pytest.skip(str(reason))
    version = f"import sys; print(sys.version_info >= {wanted})"
    assert run_to_the_end([str(python), "-c", version], dict(os.environ), LIMIT) == "True\n"
    run_cases(python)


def test_a_hang_is_ended_by_force() -> None:
    hang = "import faulthandler, threading; faulthandler.enable(); threading.Lock().acquire(); threading.Event().wait()"

    def told() -> bool:
        with pytest.raises(AssertionError, match="still running") as caught:
            run_to_the_end([sys.executable, "-c", hang], dict(os.environ), 2)
        return "most recent call first" in str(caught.value)  # not if it has not come to its hang yet

    until(told, "it tells its stacks")
