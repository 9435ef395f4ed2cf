"""Hosts with ktaskfs and sshd, each in separate namespaces, and the network from which commands reach them."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from ktaskfs.tasks.patience import VARIABLE
from tests.support.daemon import ROOT
from tests.support.poll import DEADLINE, until
from tests.support.shell import Outcome, run

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

INIT: Final = Path(__file__).with_name("host.sh")
NEEDED: Final = ("/usr/sbin/sshd", "ssh", "ssh-keygen", "ip", "unshare", "nsenter", "setsid")
NET: Final = "198.18.77"
"""A network of RFC 2544, which no real network uses."""
SPACES: Final = ("--net", "--uts", "--mount", "--ipc", "--pid", "--fork", "--kill-child=KILL")
SSHD: Final = """
HostKey {directory}/host_key
AuthorizedKeysFile {directory}/key.pub
AuthenticationMethods publickey
PermitRootLogin prohibit-password
StrictModes no
UsePAM no
PidFile none
"""
PATIENT_DAEMON: Final = {VARIABLE: str(DEADLINE)}
"""The environment of a daemon that answers a start when that has begun or is refused, even if a worker stalls."""
CLIENT: Final = """
Host hv*
 User root
 IdentityFile {directory}/key
 IdentitiesOnly yes
 UserKnownHostsFile {directory}/known_hosts
"""


class Place:
    """A separate network with a bridge for the hosts. Commands that use the hosts run in it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        # Ends with its standard input: nothing is left of the network when these tests are killed.
        self._holder = subprocess.Popen(["unshare", "--net", "cat"], stdin=subprocess.PIPE)
        self._net = Path(f"/proc/{self._holder.pid}/ns/net")
        own = os.readlink("/proc/self/ns/net")
        until(lambda: os.readlink(self._net) != own, "a network of its own")
        for words in (
            "link set lo up",
            "link add bridge0 type bridge",
            f"address add {NET}.1/24 dev bridge0",
            "link set bridge0 up",
        ):
            self.ip(words)
        for name in ("key", "host_key"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", directory / name], check=True)
        (directory / "sshd_config").write_text(SSHD.format(directory=directory))
        (directory / "ssh_config").write_text(CLIENT.format(directory=directory))
        host_key = (directory / "host_key.pub").read_text().split()[:2]
        (directory / "known_hosts").write_text(f"hv*,{NET}.* {' '.join(host_key)}\n")

    @property
    def prefix(self) -> list[str]:
        """The words before a command that run it in this network."""
        return ["nsenter", f"--net={self._net}", "--"]

    def ip(self, words: str) -> None:
        """Run ip(8) in this network."""
        subprocess.run([*self.prefix, "ip", *words.split()], check=True)

    @property
    def patient(self) -> list[str]:
        """Words of a command whose ssh(1) waits longer for a host than a process may stall."""
        waits = f"-oConnectTimeout={DEADLINE:.0f} -oServerAliveInterval={DEADLINE:.0f}"
        return ["--ssh-options", f"-F {self.directory}/ssh_config {waits}"]

    def has_link(self, name: str) -> bool:
        """Whether there is an interface of that name here."""
        return run(*self.prefix, "ip", "link", "show", "dev", name).status == 0

    def command(self, name: str, hosts: str, *words: str) -> list[str]:
        """Returns ``ktaskfs NAME --hosts HOSTS ...`` with the ssh configuration of this network."""
        python = [sys.executable, "-m", "ktaskfs.cli.main"]
        options = ["--hosts", hosts, "--ssh-options", f"-F {self.directory}/ssh_config", "--remote", " ".join(python)]
        return [*self.prefix, *python, name, *options, *words]

    def __call__(self, name: str, hosts: str, *words: str, env: Mapping[str, str] | None = None) -> Outcome:
        return run(*self.command(name, hosts, *words), cwd=ROOT, env=env)

    def close(self) -> None:
        """Remove the network."""
        self._holder.communicate()


class Host:
    """A host ``hvN`` with the address NET.10+N."""

    def __init__(self, place: Place, number: int, *, memory: str) -> None:
        """Boot the host; ``memory`` is the size of its /dev/shm. Call ``wait`` before the first use."""
        self.name = f"hv{number}"
        self.directory = place.directory
        self._number = number
        self._memory = memory
        self._place = place
        self._log = place.directory / f"{self.name}.log"
        with (place.directory / "ssh_config").open("a") as stream:
            stream.write(f"Host {self.name}\n HostName {NET}.{10 + number}\n")
        self.boot()

    def boot(self) -> None:
        """Begin its life, for the first time or after ``kill``. Call ``wait`` before it is used."""
        place = self._place
        reading, writing = os.pipe()
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                ["unshare", *SPACES, "bash", "-c", f'exec "$@" 3>&{writing}', "-"]
                + [str(INIT), self.name, str(place.directory), self._memory, sys.executable],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                pass_fds=[writing],
                cwd=ROOT,
                env=os.environ | PATIENT_DAEMON,
            )
        os.close(writing)
        self._ready = reading
        own = os.readlink("/proc/self/ns/net")
        until(lambda: os.readlink(f"/proc/{self._process.pid}/ns/net") != own, "the host has its network")
        until(lambda: not place.has_link(self.name), "the link of an earlier life is gone")
        place.ip(f"link add {self.name} type veth peer name eth0 netns {self._process.pid}")
        place.ip(f"link set {self.name} master bridge0 up")
        self.inside("ip", "address", "add", f"{NET}.{10 + self._number}/24", "dev", "eth0")
        self.inside("ip", "link", "set", "eth0", "up")

    def wait(self) -> None:
        """Wait until the host accepts a connection."""
        with open(self._ready, "rb") as stream:
            assert stream.readline() == b"ready\n", self._log.read_text()
        self.wait_for_ssh()

    def wait_for_ssh(self) -> None:
        """Return when one can log in."""
        options = ["-F", str(self.directory / "ssh_config"), "-oConnectTimeout=1"]
        words = ["ssh", *options, self.name, "true"]
        until(lambda: run(*self._place.prefix, *words).status == 0, f"{self.name} lets one in")

    @property
    def _init(self) -> str:
        return Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split()[0]

    def inside(self, *words: str) -> Outcome:
        """Run a command in the host's network."""
        outcome = run("nsenter", f"--net=/proc/{self._process.pid}/ns/net", "--", *words)
        assert outcome.status == 0, outcome
        return outcome

    @property
    def prefix(self) -> list[str]:
        """The words before a command that run it on the host without ssh."""
        return ["nsenter", f"--target={self._init}", "--all", "--"]

    def sh(self, script: str) -> str:
        """Run a script of bash on the host without ssh; returns its output."""
        outcome = run(*self.prefix, "bash", "-euc", script, env=PATIENT_DAEMON)
        assert outcome.status == 0, outcome
        return outcome.out

    def state(self, task: str) -> str:
        """Returns the state of a task; empty if the task does not exist."""
        return self.sh(f"cat /run/ktaskfs/tasks/{task}/state 2>/dev/null || :").strip()

    def clear(self) -> None:
        """Remove all tasks and files."""
        self.sh(
            "cd /run/ktaskfs/tasks; echo cancel >control; rm -f /dev/shm/*; shopt -s nullglob\n"
            "for task in */; do cat $task/wait >/dev/null; rmdir $task; done"
        )

    @property
    def is_alive(self) -> bool:
        """Whether the host still runs."""
        return self._process.poll() is None

    def freeze(self) -> None:
        """Stop all processes of the host. Its kernel still answers."""
        run("nsenter", f"--target={self._init}", "--pid", "--mount", "--", "bash", "-c", "kill -STOP -1")

    def thaw(self) -> None:
        """Continue all processes of the host."""
        run("nsenter", f"--target={self._init}", "--pid", "--mount", "--", "bash", "-c", "kill -CONT -1")

    def kill(self) -> None:
        """Kill the host."""
        self._process.kill()
        self._process.wait()
        if self._process.stdin is not None:
            self._process.stdin.close()


@contextlib.contextmanager
def three_hosts(directory: Path) -> Iterator[tuple[Place, list[Host]]]:
    """hv1, hv2 and hv3, and the network from which commands reach them; skips if a program is missing."""
    missing = [name for name in NEEDED if shutil.which(name) is None]
    if missing:
        pytest.skip(f"not installed: {' '.join(missing)}")
    with contextlib.ExitStack() as stack:
        place = Place(directory)
        stack.callback(place.close)
        hosts = []
        for number, memory in ((1, "64M"), (2, "4M"), (3, "64M")):
            host = Host(place, number, memory=memory)
            stack.callback(host.kill)
            hosts.append(host)
        for host in hosts:
            host.wait()
        yield place, hosts
