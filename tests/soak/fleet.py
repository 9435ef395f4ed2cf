"""A long run of the commands with --hosts on three hosts that die and come back.

    python -m tests.soak.fleet --minutes 10

In each round one or two of the hosts fail, before a command or while it is at work: sshd or the daemon is killed, the
link is down, the host is frozen or dead. ``ktaskfs run``, ``ls`` and ``doctor`` must end in time, with the right
status, and name the hosts that failed and no others. Then the hosts come back, and everything that was begun is
finished; no process, connection, mount or file is left of it. As root. The exit status is 1 if anything did not hold.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import psutil
from ClusterShell.NodeSet import NodeSet

from ktaskfs.cli.fleet.connections import CONNECT_TIMEOUT
from tests.fleet.faults import FAULTS, Fault
from tests.fleet.hosts import three_hosts
from tests.support.daemon import ROOT
from tests.support.poll import DEADLINE, until

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.fleet.hosts import Host, Place

ALL: Final = "hv[1-3]"
ALIVE: Final = 3 * 5
"""Seconds until ssh(1) gives a silent host up: ServerAliveInterval, twice unanswered."""
ADMISSION: Final = 6
"""Seconds for which a command on a host waits for a daemon that may come back."""
SLACK: Final = DEADLINE
"""Seconds for all that a busy machine needs."""
SHORT: Final = 2
"""Seconds of --timeout, where it is given."""
FINE: Final = frozenset({"done", "planned"})
SUMMARY: Final = re.compile(r"(?:ktaskfs: )?(\w+) \((\d+)\): (\S+?)(?:: .*)?")


@dataclass(frozen=True)
class Told:
    """What a command has said: its exit status, the hosts by the state in which they failed, objects of the others."""

    status: int
    failed: dict[str, str]
    objects: list[dict[str, Any]]
    text: str


class Rounds:
    """Rounds on ``hosts``; ``broken`` says what did not hold, ``counts`` what was done, ``slowest`` is in seconds."""

    def __init__(self, place: Place, hosts: Sequence[Host], seed: int) -> None:
        self._place = place
        self._hosts = hosts
        self._random = random.Random(seed)
        self._number = 0
        self._clean = {host.name: state_of(host) for host in hosts}
        self.broken: list[str] = []
        self.counts: Counter[str] = Counter()
        self.slowest: dict[str, float] = {}

    def play(self, seconds: float) -> None:
        """Rounds with random faults for that time, or until one is broken."""
        end = time.monotonic() + seconds
        while time.monotonic() < end and not self.broken:
            count = self._random.choice((1, 1, 2))
            chosen = {host: self._random.choice(FAULTS) for host in self._random.sample(self._hosts, count)}
            self.round(chosen, meanwhile=self._random.random() < 0.4)
            print(f"{(end - time.monotonic()) / 60:.1f} minutes left; {self.counts['rounds']} rounds", flush=True)

    def round(self, faults: dict[Host, Fault], *, meanwhile: bool) -> None:
        """Hosts fail, commands are given, the hosts come back, and nothing is left."""
        what = ", ".join(f"{host.name}: {fault.name}" for host, fault in faults.items())
        self._number += 1
        print(f"round {self._number}: {what}{', at work' if meanwhile else ''}", flush=True)
        self.counts["rounds"] += 1
        self.counts.update(f"{fault.name}{', at work' if meanwhile else ''}" for fault in faults.values())
        try:
            if meanwhile:
                self._fail_meanwhile(faults)
            else:
                self._fail_before(faults)
            self._come_back(faults)
        except (AssertionError, OSError, ValueError, KeyError, subprocess.TimeoutExpired) as error:
            self.broken.append(f"round {self._number}, {what}, meanwhile={meanwhile}: {type(error).__name__}: {error}")

    def _fail_before(self, faults: dict[Host, Fault]) -> None:
        with _failing(faults):
            spec = f"fallocate path=/dev/shm/before{self._number} length=1M name=before{self._number}"
            for command, words in (("run", (spec,)), ("ls", ()), ("doctor", ())):
                expected = {host.name: getattr(fault, command) for host, fault in faults.items()}
                for more in ((), ("--json",)) if command == "ls" else (("--json",),):
                    told = self._ask(command, *more, *words)
                    self._check(command, told, expected)
            told = self._ask("ls", "--timeout", str(SHORT), limit=SHORT)
            assert set(told.failed) >= {host.name for host, fault in faults.items() if fault.ls}, told.text

    def _check(self, command: str, told: Told, expected: dict[str, str]) -> None:
        failed = {name: state for name, state in expected.items() if state}
        assert told.failed == failed, f"{command} says {told.failed} and not {failed}:\n{told.text}"
        wrong = {each["host"] for each in told.objects if each.get("level") == "wrong"}
        assert told.status == int(bool(failed or wrong)), f"{command}: status {told.status}\n{told.text}"
        if command == "doctor":
            finding = {each["host"] for each in told.objects if "does not answer" in str(each.get("text"))}
            assert finding == {name for name, state in expected.items() if not state}, told.text
        if command == "run":
            done = {each["host"] for each in told.objects if each.get("state") in FINE}
            assert done == {host.name for host in self._hosts} - set(failed), told.text

    def _fail_meanwhile(self, faults: dict[Host, Fault]) -> None:
        """They fail while all are at work on the task ``slow``."""
        spec = f"fallocate path=/dev/shm/slow{self._number} length=1M chunk=64K rate_max=4K name=slow{self._number}"
        command = self._place.command("run", ALL, "--json", spec)
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as follower:
            try:
                _until_all(follower, {host.name for host in self._hosts}, "running")
                begin = time.monotonic()
                with contextlib.ExitStack() as stack:
                    for host, fault in faults.items():
                        fault.begin(host)
                    awaited = {host: fault for host, fault in faults.items() if not fault.meanwhile}
                    for host, fault in faults.items():
                        if host not in awaited:
                            stack.callback(fault.end, host)
                    try:
                        _until_all(follower, {host.name for host in awaited}, "stale")
                    finally:
                        for host, fault in awaited.items():
                            fault.end(host)
                    for host in self._hosts:
                        if host not in faults or host in awaited:
                            host.sh(f"echo max >/run/ktaskfs/tasks/slow{self._number}/rate_max")
                    out, err = follower.communicate(timeout=ALIVE + ADMISSION + SLACK)
                    self._note("run, at work", begin)
            finally:
                follower.kill()
        told = _told(follower.returncode, out, err)
        self._check("run", told, {host.name: fault.meanwhile for host, fault in faults.items()})

    def _come_back(self, faults: dict[Host, Fault]) -> None:
        """The hosts are there again: the same command ends well on all, and then nothing is left."""
        name = f"back{self._number}"
        told = self._ask("run", "--json", f"fallocate path=/dev/shm/{name} length=64K name={name}")
        assert (told.status, told.failed) == (0, {}), told.text
        slow = f"slow{self._number}"
        for host in self._hosts:  # it has ended on some, and one that was dead has forgotten it
            host.sh(f"cd /run/ktaskfs/tasks; [ ! -e {slow} ] || echo max >{slow}/rate_max || :")
        for host in self._hosts:
            host.clear()
            until_clean(host, self._clean[host.name])
        until(lambda: not self._connections(), "no ssh is left")

    def _connections(self) -> list[int]:
        """The processes of ssh(1) to these hosts."""
        config = f"-F{self._place.directory}/ssh_config"
        found = psutil.process_iter(["name", "cmdline"])
        return [each.pid for each in found if each.info["name"] == "ssh" and config in "".join(each.info["cmdline"])]

    def _ask(self, command: str, *words: str, limit: float = CONNECT_TIMEOUT + ADMISSION) -> Told:
        begin = time.monotonic()
        asked = subprocess.run(
            self._place.command(command, ALL, *words),
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
            timeout=limit + SLACK,
        )
        self._note(command, begin)
        self.counts[f"commands {command}"] += 1
        return _told(asked.returncode, asked.stdout, asked.stderr)

    def _note(self, what: str, begin: float) -> None:
        self.slowest[what] = max(self.slowest.get(what, 0), time.monotonic() - begin)


@contextlib.contextmanager
def _failing(faults: dict[Host, Fault]) -> Any:
    """They fail, and come back at the end."""
    with contextlib.ExitStack() as stack:
        for host, fault in faults.items():
            fault.begin(host)
            stack.callback(fault.end, host)
        yield


def _until_all(follower: subprocess.Popen[str], missing: set[str], what: str) -> None:
    """Read objects until each of the hosts has told of a task that is "running", or "stale"."""
    assert follower.stdout is not None
    while missing:
        line = follower.stdout.readline()
        assert line, follower.communicate()
        told = json.loads(line)
        missing -= {told["host"]} if told.get("stale" if what == "stale" else "state") in (True, what) else set()


def _told(status: int, out: str, err: str) -> Told:
    """From lines for people, or from objects."""
    failed: dict[str, str] = {}
    objects = []
    for line in out.splitlines():
        if not line.startswith("{"):
            continue
        found = json.loads(line)
        if "summary" in found:
            for group in found["summary"]:
                if group["state"] not in FINE:
                    failed |= dict.fromkeys(NodeSet(group["hosts"]), group["state"])
        elif "name" in found or "check" in found:
            objects.append(found)
        else:
            failed[found["host"]] = found["state"]
    for line in err.splitlines():
        match = SUMMARY.fullmatch(line)
        if match is not None and match[1] not in FINE:
            hosts = list(NodeSet(match[3]))
            assert len(hosts) == int(match[2]), line
            failed |= dict.fromkeys(hosts, match[1])
    return Told(status, failed, objects, f"{out}\n{err}")


def state_of(host: Host) -> dict[str, list[str]]:
    """What a host has: its processes by name, connections, mounts, files of the daemon and of memory."""
    script = (
        "ps -eo comm= | grep -vx -e ps -e bash -e sort -e grep | sort; echo --; ss -tanH state established; echo --; "
        "grep -E ' (/run|/dev/shm)' /proc/self/mounts; echo --; find /run/state -type f; echo --; "
        "ls -A /dev/shm /run/ktaskfs/tasks/"
    )
    names = ("processes", "connections", "mounts", "records", "files")
    parts = [part.splitlines() for part in host.sh(script).split("--\n")]
    return dict(zip(names, parts, strict=True))


def until_clean(host: Host, clean: dict[str, list[str]], deadline: float = DEADLINE) -> None:
    """Return when the host has what it had at the beginning. AssertionError names the rest."""
    end = time.monotonic() + deadline
    while (now := state_of(host)) != clean:
        rest = {key: (clean[key], now[key]) for key in clean if clean[key] != now[key]}
        assert time.monotonic() < end, f"{host.name} had, and has: {rest}"
        time.sleep(0.2)


def main() -> int:
    parser = argparse.ArgumentParser(prog="fleet", description="Commands on hosts that die and come back.")
    parser.add_argument("--minutes", type=float, required=True, help="how long")
    parser.add_argument("--seed", type=int, default=time.time_ns() & 0xFFFFFFFF, help="of all that is random")
    given = parser.parse_args()
    # At SIGINT or SIGTERM a run ends its hosts first; in the background of a script SIGINT would be ignored.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    print(f"seed {given.seed}", flush=True)
    with tempfile.TemporaryDirectory(prefix="kt-fleet-") as path, three_hosts(Path(path)) as (place, hosts):
        rounds = Rounds(place, hosts, given.seed)
        rounds.play(given.minutes * 60)
    for name, count in sorted(rounds.counts.items()):
        print(f"{name}: {count}")
    for name, seconds in sorted(rounds.slowest.items()):
        print(f"the slowest {name}: {seconds:.1f} s")
    for each in rounds.broken:
        print(f"BROKEN: {each}")
    print("Nothing was broken." if not rounds.broken else f"{len(rounds.broken)} broken invariants.")
    return int(bool(rounds.broken))


if __name__ == "__main__":
    sys.exit(main())
