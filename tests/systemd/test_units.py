"""The life of a task that a unit starts, by the type of the unit; and the effect of the unit's limits."""

from __future__ import annotations

import re
import textwrap
from typing import TYPE_CHECKING, Final

import pytest

from tests.support.daemon import ROOT
from tests.support.poll import until
from tests.support.shell import Outcome
from tests.systemd.machine import SLOWLY

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.systemd.machine import Machine

UNIT: Final = "ktaskfs.service"
MOUNT: Final = "/run/ktaskfs"
TASK: Final = f"{MOUNT}/tasks/slow"
START: Final = f"echo 'fallocate path=/dev/shm/slow length=64M {SLOWLY} name=slow' > {MOUNT}/tasks/control"
MIB: Final = 1 << 20


@pytest.fixture
def service(machine: Machine) -> Iterator[Machine]:
    """The machine with the service at work; no unit, task or file of the test is left."""
    machine.start(UNIT)
    machine.until_mounted()
    yield machine
    machine.sh(f"systemctl stop caller work.scope; tail -n 1 {TASK}/wait; rmdir {TASK}; rm /dev/shm/slow")
    machine.run("systemctl", "reset-failed", "caller")


def unit(machine: Machine, script: str, *options: str, kind: str = "oneshot") -> Outcome:
    """Run a script as the unit caller.service, until it has started: until it has ended, if it is ``oneshot``."""
    command = ("systemd-run", "--quiet", "--unit=caller", f"--service-type={kind}", *options, "bash", "-c", script)
    return machine.run(*command)


def groups_of_worker(machine: Machine) -> str:
    (worker,) = machine.workers()
    return machine.out("cat", f"/proc/{worker}/cgroup")


def let_it_end(machine: Machine) -> None:
    assert machine.sh(f"echo max > {TASK}/rate_max; tail -n 1 {TASK}/wait") == Outcome(0, "done\n", "")


def until_running(machine: Machine, task: str) -> None:
    until(lambda: machine.sh(f"grep -x running {MOUNT}/tasks/{task}/state").status == 0, f"{task} runs")


def until_ended(machine: Machine, name: str) -> None:
    until(lambda: machine.show(name, "ActiveState") == "inactive", f"{name} has ended")


def test_what_a_oneshot_unit_leaves_is_interrupted_and_can_be_resumed(service: Machine) -> None:
    assert unit(service, START).status == 0
    assert service.out("tail", "-n", "1", f"{TASK}/wait") == "interrupted\n"
    assert "as when systemd stops a unit" in service.out("cat", f"{TASK}/error")
    assert service.sh(f"echo max > {TASK}/rate_max && echo resume > {TASK}/control").status == 0
    assert service.out("tail", "-n", "1", f"{TASK}/wait") == "done\n"


def test_a_oneshot_unit_that_waits_lasts_as_long_as_its_task(service: Machine) -> None:
    script = f"{START} && tail -n 1 {TASK}/wait | grep -qx done"
    assert unit(service, script, "--no-block").status == 0
    until_running(service, "slow")
    assert service.show("caller", "ActiveState") == "activating"
    let_it_end(service)
    until_ended(service, "caller")
    assert service.show("caller", "Result") == "success"


def test_a_oneshot_unit_that_waits_for_a_task_that_ends_early_fails(service: Machine) -> None:
    script = f"{START} && tail -n 1 {TASK}/wait | grep -qx done"
    assert unit(service, script, "--no-block").status == 0
    until_running(service, "slow")
    assert service.sh(f"echo cancel > {TASK}/control").status == 0
    until(lambda: service.show("caller", "ActiveState") == "failed", "the unit has failed")


def test_a_unit_that_remains_keeps_its_task_until_it_is_stopped(service: Machine) -> None:
    assert unit(service, START, "--remain-after-exit").status == 0
    assert service.show("caller", "SubState") == "exited"
    assert groups_of_worker(service).endswith("/system.slice/caller.service\n")
    assert service.run("systemctl", "stop", "caller").status == 0
    assert service.out("tail", "-n", "1", f"{TASK}/wait") == "interrupted\n"


def test_a_unit_can_be_active_as_long_as_its_task_is(service: Machine) -> None:
    assert unit(service, START, "--property=ExitType=cgroup", kind="exec").status == 0
    until(lambda: service.show("caller", "MainPID") == "0", "the shell has ended")
    assert service.show("caller", "ActiveState") == "active"
    let_it_end(service)
    until_ended(service, "caller")


def test_a_task_that_is_started_in_a_scope_outlives_the_unit(service: Machine) -> None:
    """The scope has the limits that it is given, and lasts until the task ends. The unit's own no longer hold."""
    scope = "systemd-run --quiet --scope --unit=work --property=MemoryMax=100M"
    assert unit(service, f'{scope} bash -c "{START}"', "--property=MemoryMax=32M").status == 0
    assert service.show("caller", "ActiveState") == "inactive"
    assert set(re.findall("system.slice/.*", groups_of_worker(service))) == {"system.slice/work.scope"}
    let_it_end(service)
    until_ended(service, "work.scope")


def test_a_user_cannot_leave_the_limits_of_the_unit(service: Machine) -> None:
    """Neither for all tasks, nor for one, nor by a scope: each of these is root's."""
    too_much = "fallocate path=/dev/shm/slow length=100M"
    ways = {
        f"echo daemon > {MOUNT}/debug/ktask_cgroup": "EACCES",
        f"echo '{too_much} cgroup=daemon' > {MOUNT}/tasks/control": "EINVAL",
        f"systemd-run --quiet --scope bash -c 'echo {too_much} > {MOUNT}/tasks/control'": None,
        f"echo '{too_much}' > {MOUNT}/tasks/control": "ENOMEM",
    }
    for script, refusal in ways.items():
        limit = ("--quiet", "--pipe", "--wait", "--property=MemoryMax=64M")
        outcome = service.run("systemd-run", *limit, "runuser", "-u", "ann", "--", "bash", "-c", script)
        assert outcome.status != 0, script
        assert outcome.errname == refusal, outcome
    assert service.run("test", "-e", "/dev/shm/slow").status != 0


@pytest.mark.parametrize("kind", ["scope", "service"])
def test_up_to_the_limit_on_memory_and_not_past_it(service: Machine, kind: str) -> None:
    """The refusal names the unit's group and its limit. Nothing is killed, not even the unit's other process."""
    script = f"""
    sleep infinity & neighbour=$!
    echo 'fallocate path=/dev/shm/slow length=64M name=slow' > {MOUNT}/tasks/control
    cat {MOUNT}/info/last_cmd_status
    echo 'fallocate path=/dev/shm/slow length=48M name=slow' > {MOUNT}/tasks/control || exit
    tail -n 1 {TASK}/wait
    for points in /sys/fs/cgroup /sys/fs/cgroup/memory; do
        for file in memory.events memory.oom_control; do
            cat $points/system.slice/$1/$file 2>/dev/null | grep -x 'oom_kill .*'
        done
    done
    kill $neighbour
    """
    options = {"scope": ("--scope",), "service": ("--pipe", "--wait")}[kind]
    limited = ("--quiet", f"--unit=caller.{kind}", "--property=MemoryMax=64M", *options)
    outcome = service.run("systemd-run", *limited, "bash", "-c", script, "bash", f"caller.{kind}")
    assert outcome.status == 0, outcome
    assert outcome.errname == "ENOMEM", outcome
    said, end, kills = outcome.out.splitlines()
    assert (end, kills) == ("done", "oom_kill 0")
    words = re.search(r"group (\S+) has \S+B left: (\S+) is 64\.0MiB, (\S+B) in use", said)
    assert words is not None, said
    assert words[1].endswith(f":/system.slice/caller.{kind}")
    assert words[2] in ("memory.max", "memory.limit_in_bytes")
    assert re.fullmatch(r"[1-9]\S*KiB|([1-9]|1[0-5])\.\dMiB", words[3]), said


def documented_unit() -> str:
    """That of the page for administrators, for ordinary memory: these machines have no hugetlbfs."""
    page = (ROOT / "docs/how-to/units.md").read_text()
    unit = textwrap.dedent(page[page.index("    [Unit]") :].partition("\n\nIf the task")[0])
    return unit.replace("/dev/hugepages", "/dev/shm")


def test_the_unit_in_the_documentation_can_be_started_again_and_again(service: Machine) -> None:
    """Of the page for administrators, with less memory than there."""
    path = service.root / "run/systemd/system/vm0.service"
    path.write_text(documented_unit().replace("64G", "16M"))
    assert service.run("systemd-analyze", "verify", "/run/systemd/system/vm0.service") == Outcome(0, "", "")
    for verb in ("start", "restart"):
        assert service.run("systemctl", verb, "vm0").status == 0
        assert service.show("vm0", "ActiveState") == "active"
        assert service.out("stat", "-c", "%s", "/dev/shm/vm0") == f"{16 * MIB}\n"
    begun = service.show("vm0", "InvocationID")
    assert service.run("systemctl", "restart", "ktaskfs").status == 0
    assert service.show("vm0", "InvocationID") == begun, "nor is a guest restarted that needs the memory"
    assert service.run("systemctl", "stop", "vm0").status == 0
    assert service.sh(f"rm /dev/shm/vm0 && test ! -e {MOUNT}/tasks/vm0").status == 0
    path.unlink()
    assert service.run("systemctl", "daemon-reload").status == 0


def test_the_unit_in_the_documentation_goes_on_waiting_while_the_daemon_restarts(service: Machine) -> None:
    path = service.root / "run/systemd/system/vm0.service"
    path.write_text(documented_unit().replace("length=64G", f"length=16M {SLOWLY}"))
    assert service.run("systemctl", "start", "--no-block", "vm0").status == 0
    until_running(service, "vm0")
    assert service.run("systemctl", "restart", "ktaskfs").status == 0
    assert service.show("vm0", "ActiveState") == "activating"
    assert service.sh(f"echo max > {MOUNT}/tasks/vm0/rate_max").status == 0
    until(lambda: service.show("vm0", "ActiveState") != "activating", "the unit has waited")
    assert service.show("vm0", "ActiveState") == "active"
    assert service.sh("systemctl stop vm0 && rm /dev/shm/vm0").status == 0
    path.unlink()
    assert service.run("systemctl", "daemon-reload").status == 0


def test_the_journal_of_the_unit_in_the_documentation_has_the_reason(service: Machine) -> None:
    """The echo of dash calls any refusal an I/O error."""
    path = service.root / "run/systemd/system/vm0.service"
    path.write_text(documented_unit().replace("length=64G", "length=16M nodes=999"))
    assert service.run("systemctl", "start", "vm0").status == 1
    journal = ("journalctl", "--output=cat", "--unit=vm0", "--identifier=ktaskfs")
    until(lambda: "ktaskfs: node 999 does not exist" in service.out(*journal), "the journal has it")
    path.unlink()
    assert service.sh("systemctl daemon-reload; systemctl reset-failed vm0").status == 0


def test_a_unit_that_fails_has_another_tell_of_it(service: Machine) -> None:
    """Both units are those of the page on monitoring."""
    page = (ROOT / "docs/how-to/monitoring.md").read_text()
    told, told_of = re.findall(r"((?:    [^\n]*\n)+)", page.partition("## Notify on failure")[2])[:2]
    units = service.root / "run/systemd/system"
    (units / "ktaskfs-trouble@.service").write_text(textwrap.dedent(told))
    refused = f"/bin/sh -c 'echo clear path=/etc/hostname name=refused > {MOUNT}/tasks/control'"
    waits = f"{textwrap.dedent(told_of)}[Service]\nType=oneshot\nExecStart={refused}\n"
    (units / "waits.service").write_text(waits)
    try:
        assert service.run("systemd-analyze", "verify", "/run/systemd/system/waits.service") == Outcome(0, "", "")
        assert service.run("systemctl", "start", "waits").status != 0
        words = "task refused: clear /etc/hostname refused (EOPNOTSUPP)"
        until(lambda: words in service.out("journalctl", "-t", "ktaskfs-trouble", "-p", "err"), "it is told")
    finally:
        for name in ("ktaskfs-trouble@.service", "waits.service"):
            (units / name).unlink()
        service.sh("systemctl daemon-reload; systemctl reset-failed waits")
