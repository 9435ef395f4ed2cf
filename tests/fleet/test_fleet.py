"""The command on three hosts by OpenSSH. One of them is full, dead, or frozen for a while."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from typing import TYPE_CHECKING, Final

from tests.support.daemon import ROOT
from tests.support.hugepages import alone
from tests.support.poll import DEADLINE, until
from tests.support.terminal import CONTROL_C, Terminal

if TYPE_CHECKING:
    from tests.fleet.hosts import Host, Place

SLOW: Final = "fallocate path=/dev/shm/slow length=2M chunk=64K rate_max=4K name=slow"


def spec(size: str, name: str) -> str:
    return f"fallocate path=/dev/shm/{name} length={size} name={name}"


def started(place: Place, name: str, *words: str) -> subprocess.Popen[str]:
    pipe = subprocess.PIPE
    return subprocess.Popen(place.command(name, *words), cwd=ROOT, stdout=pipe, stderr=pipe, text=True)


def let_go(hosts: list[Host]) -> None:
    """Lift the rate of the slow task, so that it ends soon."""
    for host in hosts:
        host.sh("echo max >/run/ktaskfs/tasks/slow/rate_max")


def until_heard(follower: subprocess.Popen[str], *names: str) -> None:
    """Read objects until each of these hosts has reported a running task."""
    assert follower.stdout is not None
    missing = set(names)
    while missing:
        told = json.loads(follower.stdout.readline())
        missing -= {told["host"]} if told["state"] == "running" else set()


def test_one_of_them_is_full(place: Place, hosts: list[Host]) -> None:
    outcome = place("run", "hv[1-3]", *place.patient, spec("8M", "a"))
    assert outcome.status == 1
    assert "done (2): hv[1,3]\n" in outcome.err
    assert "refused (1): hv2: ENOSPC: /dev/shm/a: " in outcome.err
    assert {host.sh("stat -c %s /dev/shm/a") for host in hosts if host.name != "hv2"} == {"8388608\n"}
    again = place("run", "hv[1-3]", *place.patient, "--if-exists=join", "--quiet", spec("8M", "a"))
    assert again.err.splitlines()[0].startswith("refused (1): hv2: ENOSPC")


def test_results_of_several_hosts_are_told_once(place: Place, hosts: list[Host]) -> None:
    for host in hosts:
        host.sh("head -c 4096 /dev/zero >/dev/shm/same")
    outcome = place("run", "hv[1-3]", *place.patient, "--quiet", "checksum path=/dev/shm/same")
    assert outcome.status == 0
    assert outcome.out.startswith("==> hv[1-3] <==\ncrc32 ")
    assert outcome.out.count("crc32") == 1


def test_lists_and_faults_of_all_hosts(place: Place, hosts: list[Host]) -> None:
    assert place("run", "hv[1-3]", *place.patient, spec("1M", "listed")).status == 0
    outcome = place("ls", "hv[1-4]", *place.patient, "listed")
    header, *rows = outcome.out.splitlines()
    assert header.split()[:4] == ["host", "name", "operation", "state"]
    assert [row.split()[:4] for row in rows] == [[host.name, "listed", "fallocate", "done"] for host in hosts]
    assert outcome.status == 1
    assert outcome.err.startswith("ktaskfs: unreachable (1): hv4: ssh: ")
    found = [json.loads(line) for line in place("ls", "hv[1-3]", *place.patient, "--json", "lis*").out.splitlines()]
    assert [(each["host"], each["name"], each["done"]) for each in found] == [
        (host.name, "listed", 1 << 20) for host in hosts
    ]
    none = place("ls", "hv[1-3]", *place.patient, "none")
    assert none.err == "ktaskfs: failed (3): hv[1-3]: ktaskfs: there is no task none\n"

    def faults_are_told() -> bool:  # a daemon that takes more than five seconds for an answer has one more
        faults = place("doctor", "hv[1-3]", *place.patient)
        own = hosts[0].sh(f"{sys.executable} -m ktaskfs.cli.main doctor --json || true").splitlines()
        wrong = [each for each in map(json.loads, own) if each["level"] == "wrong"]
        told = [f"hv[1-3]: {each['check']}: {each['text']}" in faults.out for each in wrong]
        return all(told) and faults.status == int(bool(wrong))

    with alone():  # a pool that another test makes would be looked at, too
        until(faults_are_told, "the faults of all hosts are told")


def test_control_c_at_a_terminal(place: Place, hosts: list[Host]) -> None:
    """One ^C cancels on all hosts. After two, the tasks go on, and the same command follows them again."""
    with Terminal(*place.command("run", "hv[1-3]", *place.patient, SLOW), columns=100) as terminal:
        terminal.sees("3 running")
        terminal.type(CONTROL_C)
        terminal.sees("cancelling on all hosts")
        assert terminal.end() == 130
        assert "cancelled (3): hv[1-3]" in terminal.text
    assert {host.state("slow") for host in hosts} == {"cancelled"}

    with Terminal(*place.command("run", "hv[1-3]", *place.patient, SLOW), columns=100) as terminal:
        terminal.sees("3 running")
        hosts[0].freeze()  # or it would have cancelled before the second key
        try:
            terminal.type(CONTROL_C)
            terminal.sees("cancelling on all hosts")
            terminal.type(CONTROL_C)
            assert terminal.end() == 130
        finally:
            hosts[0].thaw()
        assert "left (" in terminal.text
        assert "the same command follows them again" in terminal.text


def test_the_same_command_joins_what_still_runs(place: Place, hosts: list[Host]) -> None:
    for seconds in (15, DEADLINE):  # again and longer if a process stalled, so that not all have begun
        outcome = place("run", "hv[1-3]", *place.patient, "--timeout", f"{seconds:.0f}", SLOW)
        words = f"timeout (3): hv[1-3]: not done after {seconds:.0f} s\n"
        assert (outcome.status, words in outcome.err) == (1, True), outcome
        if {host.state("slow") for host in hosts} == {"running"}:
            break
    before = [host.sh("cat /run/ktaskfs/tasks/slow/stat.json") for host in hosts]
    assert place("run", "hv[1-3]", *place.patient, "--detach", SLOW).err.endswith("started (3): hv[1-3]\n")
    for host, text in zip(hosts, before, strict=True):
        after = json.loads(host.sh("cat /run/ktaskfs/tasks/slow/stat.json"))
        assert (after["state"], after["created_usec"]) == ("running", json.loads(text)["created_usec"])
    with started(place, "run", "hv[1-3]", *place.patient, "--json", SLOW) as follower:
        until_heard(follower, "hv1", "hv2", "hv3")
        let_go(hosts)
        out, _ = follower.communicate(timeout=DEADLINE)
        assert follower.returncode == 0
        assert json.loads(out.splitlines()[-1])["summary"][0]["hosts"] == "hv[1-3]"


def test_a_host_that_freezes_is_lost_and_found_again(place: Place, hosts: list[Host]) -> None:
    with started(place, "run", "hv[1-3]", "--json", SLOW) as follower:
        until_heard(follower, "hv1", "hv2", "hv3")
        hosts[0].freeze()
        try:
            let_go(hosts[1:])
            out, _ = follower.communicate(timeout=2 * DEADLINE)
        finally:
            hosts[0].thaw()
        assert follower.returncode == 1
        summary = json.loads(out.splitlines()[-1])["summary"]
        assert [(each["state"], each["hosts"]) for each in summary] == [("done", "hv[2-3]"), ("lost", "hv1")]
    let_go(hosts[:1])
    assert place("run", "hv[1-3]", *place.patient, "--if-exists=join", SLOW).err.endswith("done (3): hv[1-3]\n")


def test_through_a_gateway(place: Place, hosts: list[Host]) -> None:
    """In tree mode, hv1 connects to the others."""
    topology = place.directory / "topology.conf"
    topology.write_text(f"[routes]\n{socket.gethostname().partition('.')[0]}: hv1\nhv1: hv[2-3]\n")
    env = {"CLUSTERSHELL_GW_PYTHON_EXECUTABLE": sys.executable}
    words = ["--topology", str(topology)]
    outcome = place("run", "hv[2-3]", *words, spec("1M", "far"), env=env)
    assert (outcome.status, outcome.err.splitlines()[-1]) == (0, "done (2): hv[2-3]")
    hosts[0].freeze()
    try:
        outcome = place("run", "hv[2-3]", *words, spec("1M", "farther"), env=env)
    finally:
        hosts[0].thaw()
    assert outcome.status == 1
    assert "unreachable (2): hv[2-3]: no gateway to it is left\n" in outcome.err


def test_a_dead_host_holds_nobody_up(place: Place, hosts: list[Host]) -> None:
    """The last test of this file, because the host stays dead."""
    hosts[2].kill()
    outcome = place("run", "hv[1-3]", "--batch", "50%", spec("1M", "b"))
    assert outcome.status == 1
    assert "done (2): hv[1-2]\n" in outcome.err
    assert "unreachable (1): hv3: ssh: connect to host " in outcome.err
