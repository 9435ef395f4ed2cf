"""Before the daemon executes itself, to mount anew, its children have ended."""

from __future__ import annotations

import subprocess
import sys

from tests.support.poll import DEADLINE

SCRIPT = """
import os, signal
from ktaskfs.cli import mount
child = os.fork()
if child == 0:
    signal.pause()
if os.fork() == 0:
    os._exit(0)
mount.CHILDREN_MAX = 0.2
print(mount._children_reaped(), end=" ")
os.kill(child, signal.SIGKILL)
mount.CHILDREN_MAX = float("inf")
print(mount._children_reaped(), end=" ")
try:
    os.wait()
except ChildProcessError:
    print("no child")
"""


def test_it_waits_for_them_but_not_forever() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=False, timeout=DEADLINE)
    assert (done.stdout, done.stderr) == ("False True no child\n", "")
