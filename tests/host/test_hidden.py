"""Processes that /proc hides: proc(5), hidepid."""

from __future__ import annotations

import errno
import os
import subprocess
import sys

import pytest

from ktaskfs.host import process
from ktaskfs.host.process import cpu_time, is_stopped, thread_cpu
from ktaskfs.host.topology import usable_cpus
from tests.support.poll import until

LOOK = """
import os
from ktaskfs.host.cgroups import groups_of
from ktaskfs.host.process import cpu_time, is_stopped, thread_cpu
os.setgroups([])
os.setresgid(65534, 65534, 65534)
os.setresuid(65534, 65534, 65534)
print(cpu_time(1) > 0, is_stopped(1), thread_cpu(1, 1), groups_of(1))
"""


@pytest.mark.usefixtures("root")
@pytest.mark.parametrize("hidepid", ["1", "2"])
def test_of_a_hidden_process_only_the_time_on_a_cpu_is_known(hidepid: str) -> None:
    shell = 'mount -t proc -o "hidepid=$0" proc /proc && exec "$@"'
    command = ["unshare", "--mount", "--propagation=private", "sh", "-c", shell, hidepid, sys.executable, "-c", LOOK]
    assert subprocess.run(command, capture_output=True, check=True, text=True).stdout == "True False None ()\n"


def test_the_time_on_a_cpu_is_that_of_a_process_that_works() -> None:
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as busy:
        until(lambda: cpu_time(busy.pid) > 10**8, "it works")
        busy.kill()
    assert cpu_time(busy.pid) == 0


def test_a_label_hides_a_process_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """SELinux asks at both calls (getsched, read); EACCES would end the daemon when it deals threads."""

    def refuse(*_: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    assert usable_cpus(os.getpid()) == tuple(sorted(os.sched_getaffinity(0)))
    monkeypatch.setattr(os, "sched_getaffinity", refuse)
    monkeypatch.setattr(process, "open", refuse, raising=False)
    pid = os.getpid()
    assert (usable_cpus(pid), is_stopped(pid), thread_cpu(pid, pid)) == ((), False, None)
