"""A systemd with only version 2: the limits of its units hold for their tasks."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.systemd.machine import Machine

TRY = """
cd /run/ktaskfs
echo "fallocate path=/dev/shm/f length=$1 name=t" > tasks/control || cat info/last_cmd_status
[ ! -d tasks/t ] || { tail -n 1 tasks/t/wait; cat tasks/t/error; rmdir tasks/t; }
grep -x 'oom_kill .*' "/sys/fs/cgroup$(cut -d: -f3 /proc/self/cgroup)/memory.events"
"""


@pytest.mark.parametrize("options", [("--scope",), ("--pipe", "--wait")], ids=["scope", "service"])
def test_a_units_limit_on_memory_holds(machine: Machine, options: tuple[str, ...]) -> None:
    assert machine.run("systemctl", "start", "ktaskfs.service").status == 0
    machine.until_mounted()
    limited = ("systemd-run", "--quiet", "--property=MemoryMax=64M", *options, "bash", "-c", TRY, "bash")
    refused = machine.run(*limited, "100M").out
    assert re.search(r"group v2:/system.slice/run-\S+ has \S+B left: memory.max is 64\.0MiB, \S+B in use", refused)
    assert refused.endswith("oom_kill 0\n")
    done = machine.run(*limited, "32M")
    assert (done.out, done.err) == ("done\n0\noom_kill 0\n", "")
    assert machine.run("rm", "/dev/shm/f").status == 0
