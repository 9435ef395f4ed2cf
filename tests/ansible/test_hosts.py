"""The playbooks of the collection on three hosts by OpenSSH."""

from __future__ import annotations

import json
import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest

from ktaskfs.version import VERSION
from tests.ansible.newer import NewerAnsible, layers
from tests.ansible.plays import Ansible
from tests.ansible.tools import PLACE
from tests.fleet.hosts import Host, Place, three_hosts
from tests.support.packages import Unavailable
from tests.support.shell import run

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.ansible.plays import Played
    from tests.support.shell import Outcome

MOLECULE: Final = {"ANSIBLE_STDOUT_CALLBACK": "default"}
"""Settings for Molecule, which reads Ansible's output for people."""
GUESTS: Final = [{"name": "vm0", "size": "2M"}]


class Fleet:
    """Three hosts, and Ansible to configure them. hv2 has room for 4 MiB."""

    def __init__(self, place: Place, hosts: list[Host], ansible: Ansible) -> None:
        self.hosts = hosts
        self.ansible = ansible
        self._place = place
        self.inventory = str(place.directory / "inventory")
        self._ssh = ["-F", f"{place.directory}/ssh_config", "-o", f"ControlPath={place.directory}/%n.socket"]
        shared = "-o ControlMaster=auto -o ControlPersist=600"
        Path(self.inventory).write_text(
            "hv[1:3]\n[all:vars]\nansible_python_interpreter=/usr/bin/python3\n"
            f"ansible_ssh_args={' '.join(self._ssh)} {shared}\nansible_host_key_checking=false\n"
        )

    def with_programs(self, programs: Path) -> Fleet:
        """Returns the same hosts with another release of Ansible."""
        return Fleet(self._place, self.hosts, self.ansible.with_programs(programs))

    def with_the_newest(self, collections: Path, directory: Path) -> Fleet:
        """Returns the same hosts with the newest release. ``directory`` is empty. Raises Unavailable."""
        ansible = NewerAnsible(layers(directory), collections, self._place.directory, self._place.prefix)
        return Fleet(self._place, self.hosts, ansible)

    def hang_up(self) -> None:
        """Close the shared connections."""
        for host in self.hosts:
            run(*self._place.prefix, "ssh", *self._ssh, "-O", "exit", host.name)

    def play(self, playbook: str, *words: str, **variables: Any) -> Played:
        """Run a playbook on all hosts."""
        return self.ansible.play(self.inventory, playbook, *words, hosts="all", **variables)

    def molecule(self, collection: Path) -> Outcome:
        """Run the collection's scenario."""
        variables = {"MOLECULE_EPHEMERAL_DIRECTORY": f"{self._place.directory}/molecule", "HOSTS": self.inventory}
        return self.ansible("molecule", "test", cwd=collection, **variables, **MOLECULE)

    def sh(self, script: str) -> list[str]:
        """Returns the output of a script on each host."""
        return [host.sh(script) for host in self.hosts]


@pytest.fixture(scope="module")
def three(root: None, newest: Path, collections: Path) -> Iterator[Fleet]:
    """The hosts with the newest Ansible that runs on this machine."""
    with tempfile.TemporaryDirectory(prefix="kt-ansible-") as path, three_hosts(Path(path)) as (place, hosts):
        fleet = Fleet(place, hosts, Ansible(newest, collections, Path(path), place.prefix))
        yield fleet
        fleet.hang_up()


@pytest.fixture
def fleet(three: Fleet) -> Iterator[Fleet]:
    """The hosts, without tasks."""
    yield three
    for host in three.hosts:
        if host.is_alive:
            host.clear()


def test_the_second_run_changes_nothing_that_is_there(fleet: Fleet) -> None:
    variables = {"guests": GUESTS, "directory": "/dev/shm", "batch": 3}
    planned = fleet.play("ktaskfs.host.hypervisors", "--check", **variables)
    assert planned.outcome.status == 0, planned.failures
    assert planned.changed == {"hv1": 2, "hv2": 2, "hv3": 2}, "neither step finds the task"
    assert fleet.sh("ls /dev/shm /run/ktaskfs/tasks/") == ["/dev/shm:\n\n/run/ktaskfs/tasks/:\ncontrol\n"] * 3

    first = fleet.play("ktaskfs.host.hypervisors", **variables)
    assert first.outcome.status == 0, first.failures
    assert first.changed == {"hv1": 1, "hv2": 1, "hv3": 1}
    assert fleet.sh("stat --format=%s:%b /dev/shm/vm?") == ["2097152:4096\n"] * 3

    fleet.hosts[1].sh("rm /dev/shm/vm0")
    second = fleet.play("ktaskfs.host.hypervisors", **variables)
    assert second.changed == {"hv1": 0, "hv2": 1, "hv3": 0}, "where the memory is gone it is allocated again"


def test_a_scrub_and_its_proof(fleet: Fleet) -> None:
    two = "--limit=hv1,hv2"
    fleet.sh("head -c 1M /dev/urandom >/dev/shm/vm0")
    first = fleet.play("ktaskfs.host.scrub", two, tenant=17, memory="/dev/shm/vm0")
    assert first.outcome.status == 0, first.failures
    assert first.changed == {"hv1": 3, "hv2": 3}
    assert fleet.sh("ls /dev/shm") == ["", "", "vm0\n"]
    fleet.hosts[0].sh("head -c 1M /dev/urandom >/dev/shm/vm0")  # the next one, with the same number
    assert fleet.play("ktaskfs.host.scrub", two, tenant=17, memory="/dev/shm/vm0").changed == {"hv1": 3, "hv2": 0}


def test_a_host_without_room_fails_and_a_batch_ends_the_play(fleet: Fleet) -> None:
    """hv2 has no room. In batches of one host, it ends the play before hv3. In one batch, the others are done."""
    variables = {"guests": [{"name": "vm0", "size": "8M"}], "directory": "/dev/shm"}
    planned = fleet.play("ktaskfs.host.hypervisors", "--check", batch=3, **variables)
    (item,) = planned.of("Start to allocate")["hv2"]["results"]
    assert (item["errno"], item["changed"], item["actions"]) == ("ENOSPC", False, [])
    rolling = fleet.play("ktaskfs.host.hypervisors", batch=1, **variables)
    assert rolling.outcome.status != 0
    assert (rolling.counts["hv1"]["changed"], rolling.counts["hv2"]["failures"]) == (1, 1)
    assert "hv3" not in rolling.counts
    (item,) = rolling.of("Start to allocate")["hv2"]["results"]
    assert item["errno"] == "ENOSPC"
    assert item["msg"].startswith("/dev/shm/vm0: ")
    assert "are missing, but " in item["msg"]
    assert fleet.sh("ls /dev/shm") == ["vm0\n", "", ""]


def test_the_oldest_release(fleet: Fleet, oldest: Path) -> None:
    """It also reads the present state and shows the difference."""
    variables = {"guests": GUESTS, "directory": "/dev/shm"}
    old = fleet.with_programs(oldest)
    assert "core 2.1" in old.ansible("ansible", "--version").out
    played = old.play("ktaskfs.host.hypervisors", "--limit=hv1", "--diff", **variables)
    assert played.changed == {"hv1": 1}
    (item,) = played.of("Start to allocate")["hv1"]["results"]
    assert item["diff"]["before"] == {"state": "absent"}
    after = {"op": "fallocate", "path": "/dev/shm/vm0", "length": "2M"}
    assert item["diff"]["after"].items() > after.items()
    told = old.ansible("ansible", "-i", old.inventory, "hv1", "--module-name=ktaskfs.host.info", "--args=name=guest-*")
    answer = json.loads(told.out.partition("=>")[2])
    assert [(task["name"], task["total"]) for task in answer["tasks"]] == [("guest-vm0", 2 << 20)]
    assert (answer["mounted"], answer["version"]) == (True, VERSION)
    assert {pool["node"] for pool in answer["pools"]} >= {None, 0}


def test_the_newest_release(fleet: Fleet, collections: Path, tmp_path: Path) -> None:
    """It needs Python 3.12. Its connections end with its system, so they are not shared."""
    try:
        new = fleet.with_the_newest(collections, tmp_path)
    except Unavailable as error:
        pytest.skip(str(error))
    version = re.search(r"core (\d+)\.(\d+)", new.ansible("ansible", "--version").out)
    assert version is not None
    assert (int(version[1]), int(version[2])) > (2, 19)
    alone = f"-F {Path(fleet.inventory).with_name('ssh_config')} -o ControlMaster=no"
    variables = {"guests": GUESTS, "directory": "/dev/shm", "batch": 3, "ansible_ssh_args": alone}
    for changed in (1, 0):
        played = new.play("ktaskfs.host.hypervisors", **variables)
        assert played.outcome.status == 0, played.failures
        assert played.changed == {"hv1": changed, "hv2": changed, "hv3": changed}


def test_weights_that_are_replaced_are_loaded_again(fleet: Fleet) -> None:
    fleet.sh("head -c 1M /dev/urandom >/dev/shm/source")
    variables = {"weights": "/dev/shm/source", "memory": "/dev/shm/weights"}
    assert fleet.play("ktaskfs.host.weights", "--limit=hv2,hv3", **variables).changed == {"hv2": 2, "hv3": 2}
    fleet.hosts[2].sh("head -c 1M /dev/urandom >/dev/shm/new; mv /dev/shm/new /dev/shm/source")
    assert fleet.play("ktaskfs.host.weights", "--limit=hv2,hv3", **variables).changed == {"hv2": 0, "hv3": 2}
    assert fleet.hosts[2].sh("cmp /dev/shm/source /dev/shm/weights") == ""


def test_the_scenario_of_molecule(fleet: Fleet, collections: Path) -> None:
    """The scenario converges, changes nothing in a second run, verifies, and leaves nothing."""
    done = fleet.molecule(collections / PLACE)
    assert done.status == 0, done
    steps = re.findall(r"default > (\w+): Executed: (\w+)", done.out + done.err)
    assert steps == [(step, "Successful") for step in ("syntax", "converge", "idempotence", "verify", "cleanup")], done
    assert fleet.sh("ls /dev/shm /run/ktaskfs/tasks/") == ["/dev/shm:\n\n/run/ktaskfs/tasks/:\ncontrol\n"] * 3


def test_a_dead_host_is_unreachable_and_the_others_are_done(fleet: Fleet) -> None:
    """The last test of this file, because the host stays dead."""
    fleet.hang_up()
    fleet.hosts[2].kill()
    played = fleet.play("ktaskfs.host.hypervisors", guests=GUESTS, directory="/dev/shm", batch=3)
    assert played.outcome.status != 0
    assert played.counts["hv3"]["unreachable"] == 1
    assert [played.counts[host]["failures"] for host in ("hv1", "hv2")] == [0, 0]
