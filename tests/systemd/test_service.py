"""ktaskfs.service under a real systemd: from the boot to the removal, without losing a task."""

from __future__ import annotations

import errno
import json
from typing import TYPE_CHECKING

import pytest

from tests.support.hugepages import reserved
from tests.support.poll import until
from tests.support.shell import Outcome

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from tests.systemd.machine import Machine

UNIT = "ktaskfs.service"
CONFINED = "ktaskfs-confined.service"
UNITS = (UNIT, CONFINED, "ktaskfs-boot.service", "run-ktaskfs.mount", "run-ktaskfs.automount")


@pytest.fixture
def service(machine: Machine) -> Iterator[Machine]:
    """The machine with the service running, and no configuration but the one that was installed."""
    conf = machine.root / "etc/ktaskfs.conf"
    before = conf.read_text()
    machine.start(UNIT)
    yield machine
    conf.write_text(before)
    machine.run("systemctl", "reset-failed", UNIT)


def test_the_units_are_without_fault(machine: Machine) -> None:
    assert machine.run("systemd-analyze", "verify", *UNITS) == Outcome(0, "", "")


@pytest.mark.parametrize(("unit", "exposure"), [(UNIT, 45), (CONFINED, 25)])
def test_the_sandbox_is_tight(machine: Machine, unit: str, exposure: int) -> None:
    """Exposure in tenths."""
    outcome = machine.run("systemd-analyze", "security", "--offline=true", f"--threshold={exposure}", unit)
    assert outcome.status == 0, outcome.out.splitlines()[-1]


def test_the_manual_pages(machine: Machine) -> None:
    for page in (
        "1 ktaskfs",
        "8 ktaskfs",
        "8 mount.ktaskfs",
        "5 ktaskfs.conf",
        "5 ktaskfs.d",
        "5 ktaskfs",
        "7 ktaskfs-operations",
    ):
        outcome = machine.sh(f"LC_ALL=C.UTF-8 MANROFFSEQ= MANWIDTH=100 man --warnings=w {page}")
        assert outcome.status == 0, outcome
        assert outcome.err == ""
        assert outcome.out.startswith(page.split()[1].upper())


def test_a_member_of_the_group_runs_a_task(service: Machine) -> None:
    service.start_slow_task("ann1")
    (worker,) = service.workers()
    assert service.out("ps", "-o", "user=,args=", worker).split() == ["ann", "ktask/ann1"]
    assert service.show(UNIT, "StatusText").endswith("unfinished")
    service.finish_task("ann1")


def test_the_command_of_a_member_of_the_group_outlives_the_daemon(service: Machine) -> None:
    service.start_slow_task("long")
    follow = "ktaskfs run --json --if-exists=join fallocate path=/dev/shm/long length=64M name=long"
    script = f"({follow}; echo status $?) > /tmp/followed 2>&1 & until test -s /tmp/followed; do sleep 0.1; done"
    assert service.sh(script, user="ann").status == 0
    assert service.run("systemctl", "kill", "--signal=KILL", "--kill-whom=main", UNIT).status == 0
    service.until_mounted()
    service.finish_task("long")
    until(lambda: "status" in service.out("cat", "/tmp/followed"), "the command ends")
    *objects, status = service.out("cat", "/tmp/followed").splitlines()
    assert (json.loads(objects[-1])["state"], status) == ("done", "status 0")
    service.run("rm", "/tmp/followed")


def test_the_doctor_knows_the_service(service: Machine) -> None:
    def levels() -> dict[str, str]:
        found = map(json.loads, service.sh("ktaskfs doctor --json").out.splitlines())
        return {each["check"]: each["level"] for each in found if each["check"] in ("service", "mount", "access")}

    # Neither the daemon nor systemd has more than five seconds for an answer.
    until(lambda: levels() == {"service": "ok", "mount": "ok", "access": "ok"}, "all is well")
    assert service.run("systemctl", "stop", UNIT).status == 0
    until(lambda: levels() == {"service": "ok", "mount": "wrong"}, "the mount is missed")
    until(lambda: "systemctl restart ktaskfs\n" in service.sh("ktaskfs doctor").out, "the remedy is named")
    assert "usermod" not in service.sh("ktaskfs doctor", user="bob").out
    service.start(UNIT)
    advice = "usermod --append --groups ktask bob\n"
    until(lambda: advice in service.sh("ktaskfs doctor", user="bob").out, "the group is named")


OWN_NAMESPACE = "unshare --user --map-root-user bash -c"


def test_a_worker_reaches_proc_and_sys_read_only_and_joins_a_user_namespace(service: Machine) -> None:
    service.start_slow_task("held")
    (worker,) = service.workers()
    roots = service.sh(f"for fd in /proc/{worker}/fd/*; do stat -f -c %T $fd/; done 2>&1 | sort | uniq -c").out.split()
    assert [roots[index - 1] for index, word in enumerate(roots) if word in ("proc", "sysfs")] == ["1", "1"]
    writable = f"for fd in /proc/{worker}/fd/*; do test -w $fd/sys/fs/lease-break-time && echo $fd; done; true"
    assert service.sh(writable) == Outcome(0, "", "")
    spec = "fallocate path=/dev/shm/inside length=1M name=inside"
    asked = service.sh(f"{OWN_NAMESPACE} 'echo {spec} > /run/ktaskfs/tasks/control'", user="ann")
    assert asked == Outcome(0, "", "")
    assert service.sh("tail -n 1 /run/ktaskfs/tasks/inside/wait; rm /dev/shm/inside") == Outcome(0, "done\n", "")
    service.finish_task("held")


def test_others_see_it_and_run_none(service: Machine) -> None:
    assert service.out("cat", "/run/ktaskfs/version", user="bob") == service.out("cat", "/run/ktaskfs/version")
    outcome = service.sh("echo 'fallocate path=/dev/shm/bob length=1M' > /run/ktaskfs/tasks/control", user="bob")
    assert outcome.errname == "EACCES"


def test_a_killed_daemon_comes_back_and_its_task_is_finished(service: Machine) -> None:
    service.start_slow_task("killed")
    workers = service.workers()
    before = service.show(UNIT, "MainPID")
    assert service.run("kill", "-9", before).status == 0
    until(lambda: service.show(UNIT, "MainPID") not in (before, "0"), "another daemon")
    service.until_mounted()
    assert service.workers() == workers
    service.finish_task("killed")
    service.until_logged("killed is adopted", "-u", UNIT, "KTASK_NAME=killed")


@pytest.mark.parametrize("verb", ["restart", "stop"])
def test_no_task_is_lost(service: Machine, verb: str) -> None:
    service.start_slow_task(verb)
    workers = service.workers()
    assert service.run("systemctl", verb, UNIT).status == 0
    assert service.workers() == workers
    assert service.is_mounted() == (verb == "restart")
    if verb == "stop":
        assert service.show(UNIT, "Result") == "success"
        assert service.out("ls", "/run/ktaskfs") == ""
        service.start(UNIT)
    service.finish_task(verb)


def test_umount_ends_the_service(service: Machine) -> None:
    # Not while the daemon has a program look whether the mount answers.
    until(lambda: service.run("umount", "/run/ktaskfs").status == 0, "it is unmounted")
    until(lambda: service.show(UNIT, "ActiveState") == "inactive", "the end of the service")
    assert service.show(UNIT, "Result") == "success"


def test_a_start_that_fails_leaves_a_mount_that_somebody_else_made(service: Machine) -> None:
    assert service.run("systemctl", "stop", UNIT).status == 0
    assert service.run("ktaskfs", "mount", "-o", "gid=ktask,mode=0660", "/run/ktaskfs").status == 0
    assert service.run("systemctl", "start", UNIT).status != 0
    until(lambda: service.show(UNIT, "ActiveState") == "failed", "systemd gives up")
    service.until_logged("is mounted there already, and answers", "-u", UNIT)
    assert service.out("cat", "/run/ktaskfs/version")
    assert service.run("umount", "/run/ktaskfs").status == 0
    assert service.sh(f"systemctl reset-failed {UNIT} && systemctl start {UNIT}").status == 0


def test_reload_reads_the_configuration_again(service: Machine) -> None:
    conf = service.root / "etc/ktaskfs.conf"
    threads = "/run/ktaskfs/debug/ktask_max_threads"
    before = service.show(UNIT, "MainPID")
    conf.write_text("max_threads = 7\n")
    assert service.run("systemctl", "reload", UNIT).status == 0
    until(lambda: service.out("cat", threads) == "7\n", "the new value")

    conf.write_text("# a fault below\nmax_threads = no\n")
    assert service.run("systemctl", "reload", UNIT).status != 0
    service.until_logged("/etc/ktaskfs.conf:2: ", "-u", UNIT, "-p", "err")
    assert service.out("cat", threads) == "7\n"
    assert service.show(UNIT, "MainPID") == before
    assert service.show(UNIT, "ActiveState") == "active"


def test_a_daemon_that_no_longer_answers_is_replaced(service: Machine) -> None:
    dropin = service.root / "run/systemd/system/ktaskfs.service.d"
    dropin.mkdir(parents=True)
    (dropin / "watchdog.conf").write_text("[Service]\nWatchdogSec=5s\nLimitCORE=0\n")
    try:
        assert service.sh(f"systemctl daemon-reload && systemctl restart {UNIT}").status == 0
        service.start_slow_task("watched")
        before = service.show(UNIT, "MainPID")
        assert service.run("kill", "-STOP", before).status == 0
        until(lambda: service.show(UNIT, "MainPID") not in (before, "0"), "another daemon")
        service.until_mounted()
        service.until_logged("Watchdog timeout", "-u", UNIT)
        service.finish_task("watched")
    finally:
        (dropin / "watchdog.conf").unlink()
        dropin.rmdir()
        service.run("systemctl", "daemon-reload")


def journal(machine: Machine, match: str, count: int) -> list[Mapping[str, str]]:
    """The lines of the service's journal that match, once there are ``count``."""
    found: list[Mapping[str, str]] = []

    def has_them() -> bool:
        lines = machine.out("journalctl", "-u", UNIT, "-o", "json", match).splitlines()
        found[:] = map(json.loads, lines)
        return len(found) >= count

    until(has_them, f"the journal has {count} lines with {match}")
    return found


def test_the_journal_knows_tasks_and_priorities(service: Machine) -> None:
    service.start_slow_task("noted")
    service.sh("pkill --signal KILL --full '^ktask/noted'")
    assert service.sh("tail -n 1 /run/ktaskfs/tasks/noted/wait").out == "interrupted\n"
    began, ended = journal(service, "KTASK_NAME=noted", 2)
    assert began["MESSAGE"].startswith("task noted: fallocate /dev/shm/noted 64M by user")
    assert (began["PRIORITY"], began["KTASK_STATE"]) == ("6", "running")
    assert ended["PRIORITY"] == "4"
    assert ended["KTASK_STATE"] == "interrupted"
    assert ended["ERRNO"] == str(errno.EINTR)
    assert "task noted: fallocate /dev/shm/noted 64M interrupted in" in ended["MESSAGE"]
    assert "killed by signal 9" in ended["MESSAGE"]
    uid = service.out("id", "-u", "ann").strip()
    for line in (began, ended):
        named = [line[f"KTASK_{name}"] for name in ("OPERATION", "PATH", "UID")]
        assert named == ["fallocate", "/dev/shm/noted", uid]
    assert int(ended["KTASK_DONE"]) < int(ended["KTASK_TOTAL"]) == 64 << 20


def test_the_journal_knows_what_was_refused_and_who_changed_a_tunable(service: Machine) -> None:
    refused = service.sh("echo 'clear path=/etc/hostname name=no' > /run/ktaskfs/tasks/control", user="ann")
    assert refused.errname == "EOPNOTSUPP"
    (line,) = journal(service, "KTASK_NAME=no", 1)
    assert line["MESSAGE"].startswith("task no: clear /etc/hostname refused (EOPNOTSUPP): ")
    assert (line["PRIORITY"], line["KTASK_STATE"], line["ERRNO"]) == ("4", "refused", str(errno.EOPNOTSUPP))
    assert service.sh("echo 3 > /run/ktaskfs/debug/ktask_max_threads").status == 0
    assert service.sh("echo 0 > /run/ktaskfs/debug/ktask_max_threads").errname == "EINVAL"
    changed, not_changed = journal(service, "KTASK_TUNABLE=max_threads", 2)
    assert changed["MESSAGE"] == "debug/ktask_max_threads: 3, was max, by user 0"
    assert changed["PRIORITY"] == "6"
    assert not_changed["PRIORITY"] == "4"
    assert service.sh("echo max > /run/ktaskfs/debug/ktask_max_threads").status == 0


def test_the_daemon_that_may_not_mount(machine: Machine) -> None:
    """The whole life of the confined service: a task at work, a killed daemon, restart, stop, and back again."""
    machine.start(CONFINED)
    assert machine.show(UNIT, "ActiveState") == "inactive"
    assert machine.is_mounted()
    assert machine.run("touch", "/run/ktaskfs/tasks/new", user="bob").errname == "EACCES"
    machine.start_slow_task("confined")
    workers = machine.workers()
    before = machine.show(CONFINED, "MainPID")
    capabilities = int(machine.sh(f"sed -n 's/CapEff:\t//p' /proc/{before}/status").out, 16)
    assert capabilities >> 21 & 1 == 0  # CAP_SYS_ADMIN
    pools = "/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages"
    reserve = f'echo "reserve size=2M pages=$(cat {pools}) name=same" > /run/ktaskfs/tasks/control'
    with reserved(2 << 20, 0):  # the pools are those of the host: no other test changes them meanwhile
        assert machine.sh(f"{reserve} && tail -n 1 /run/ktaskfs/tasks/same/wait") == Outcome(0, "done\n", "")
    spec = "fallocate path=/dev/shm/inside length=1M"
    outcome = machine.sh(f"{OWN_NAMESPACE} 'echo {spec} > /run/ktaskfs/tasks/control'", user="ann")
    assert outcome.errname == "EACCES", outcome
    assert "may not join" in machine.sh("cat /run/ktaskfs/info/last_cmd_status", user="ann").out
    assert machine.run("kill", "-9", before).status == 0
    until(lambda: machine.show(CONFINED, "MainPID") not in (before, "0"), "another daemon")
    until(lambda: machine.show(CONFINED, "ActiveState") == "active", "a daemon that is ready")
    assert machine.run("systemctl", "restart", CONFINED).status == 0
    assert machine.workers() == workers
    machine.finish_task("confined")
    assert machine.run("systemctl", "stop", CONFINED).status == 0
    assert machine.show(CONFINED, "Result") == "success"
    assert machine.out("ls", "/run/ktaskfs") == ""
