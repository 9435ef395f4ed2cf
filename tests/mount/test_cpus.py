"""A task runs on the CPUs that its caller may use, and takes no helper from tasks that may use more."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ktaskfs.host.topology import usable_cpus
from tests.attacks.callers import wait_for_worker
from tests.support.poll import until

if TYPE_CHECKING:
    from tests.conftest import MountMaker
    from tests.support.daemon import Mount

pytestmark = pytest.mark.skipif(len(usable_cpus()) < 2, reason="there is one CPU")

FIRST, SECOND = (usable_cpus() * 2)[:2]


def start_on(mount: Mount, cpu: int, spec: str) -> None:
    script = 'taskset --cpu-list "$1" bash -c \'echo "$1" > tasks/control\' bash "$2"'
    outcome = mount.shell(script, str(cpu), spec)
    assert outcome.status == 0, outcome.err


def test_a_worker_runs_on_its_callers_cpus(mounted: Mount, memory: Path) -> None:
    start_on(mounted, SECOND, f"fallocate name=t path={memory}/f length=1M chunk=4096 rate_max=1")
    assert os.sched_getaffinity(wait_for_worker(mounted, "t")) == {SECOND}
    mounted.write("tasks/t/control", "cancel")
    assert mounted.cat("tasks/t/wait").status == 0


def test_a_caller_on_other_cpus_than_the_daemon_gets_the_daemons(mount_maker: MountMaker, memory: Path) -> None:
    mount = mount_maker(prefix=("taskset", "--cpu-list", str(FIRST)))
    start_on(mount, SECOND, f"fallocate name=t path={memory}/f length=1M chunk=4096 rate_max=1")
    assert os.sched_getaffinity(wait_for_worker(mount, "t")) == {FIRST}
    mount.write("tasks/t/control", "cancel")
    assert mount.cat("tasks/t/wait").status == 0


def test_a_task_on_one_cpu_leaves_the_helpers_to_others(mounted: Mount, memory: Path) -> None:
    spec = "length=1M chunk=4096 rate_max=8192 max_threads=2"
    start_on(mounted, FIRST, f"fallocate name=pinned path={memory}/f {spec}")
    assert mounted.write("tasks/control", f"fallocate name=free path={memory}/g {spec}") == (0, None)

    def threads(name: str) -> int:
        pid = wait_for_worker(mounted, name)
        names = []
        for each in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(OSError):  # a thread that has ended
                names.append((each / "comm").read_text())
        return 1 + sum(":1" in each or ":2" in each for each in names)

    until(lambda: threads("free") == 2, "the free task has a helper")
    assert threads("pinned") == 1
    for name in ("pinned", "free"):
        mounted.write(f"tasks/{name}/control", "cancel")
        assert mounted.cat(f"tasks/{name}/wait").status == 0
