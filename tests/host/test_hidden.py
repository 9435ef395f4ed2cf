"""Processes that /proc hides: proc(5), hidepid."""

from __future__ import annotations

import subprocess
import sys

import pytest

LOOK = """
import os
from ktaskfs.host.cgroups import groups_of
from ktaskfs.host.process import cpu_ticks, is_stopped, thread_cpu
os.setgroups([])
os.setresgid(65534, 65534, 65534)
os.setresuid(65534, 65534, 65534)
print(cpu_ticks(1), is_stopped(1), thread_cpu(1, 1), groups_of(1))
"""


@pytest.mark.usefixtures("root")
@pytest.mark.parametrize("hidepid", ["1", "2"])
def test_nothing_is_known_of_a_hidden_process(hidepid: str) -> None:
    shell = 'mount -t proc -o "hidepid=$0" proc /proc && exec "$@"'
    command = ["unshare", "--mount", "--propagation=private", "sh", "-c", shell, hidepid, sys.executable, "-c", LOOK]
    assert subprocess.run(command, capture_output=True, check=True, text=True).stdout == "0 False None ()\n"
