"""The role service on a machine with systemd: it installs ktaskfs, and changes its settings later."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest

from ktaskfs.version import VERSION
from tests.ansible.plays import Ansible
from tests.support.daemon import ROOT
from tests.support.hugepages import TestPool, reserved
from tests.support.poll import until
from tests.systemd.machine import Machine, booted_with

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.ansible.plays import Played

ROLE: Final = "ktaskfs.host.service"
UNIT: Final = "ktaskfs.service"
TUNABLE: Final = "/run/ktaskfs/debug/ktask_max_threads"
SIZE: Final = 2 << 20
PAGES: Final = 2
CONTROL: Final = """Package: ktaskfs
Version: {version}
Architecture: all
Maintainer: The ktaskfs authors <ktaskfs@ktaskfs.invalid>
Description: what make install puts onto a machine, for a test
"""
PLAYBOOK: Final = """
- hosts: all
  gather_facts: false
  roles: [ktaskfs.host.service]
"""
SETUP: Final = """
useradd ann
rm -rf /var/lib/apt/lists/* /etc/apt/sources.list*
mkdir -p /var/lib/apt/periodic
touch /var/lib/apt/periodic/update-success-stamp
"""
"""apt is quick because it knows only the installed packages. It takes its lists for up to date."""
PLACE: Final = "/opt/collections"
"""The directory of the collection, the playbook and the package on the machine."""
SOURCE: Final = r"""
git init --quiet --initial-branch=main /opt/upstream && cd /opt/upstream
git config user.name kt && git config user.email kt@ktaskfs.invalid
printf 'install:\n\ttest ! -e /opt/broken\n\tmkdir -p $(PREFIX)/sbin $(PREFIX)/lib/ktaskfs\n' > Makefile
printf '\tln -sf /usr/sbin/ktaskfs $(PREFIX)/sbin/ktaskfs\n' >> Makefile
git add Makefile && git commit --quiet --message=1
"""
"""A repository whose `make install` fails as long as there is /opt/broken."""


def make_package(path: Path) -> None:
    """Make a package with the files of ``make install``; tests/packaging tests the real one."""
    with tempfile.TemporaryDirectory(prefix="kt-deb-") as name:
        tree = Path(name)
        tree.chmod(0o755)
        subprocess.run([sys.executable, ROOT / "packaging/install.py", "install", "/usr", tree], check=True)
        (tree / "DEBIAN").mkdir()
        (tree / "DEBIAN/control").write_text(CONTROL.format(version=VERSION))
        (tree / "DEBIAN/conffiles").write_text("/etc/ktaskfs.conf\n")
        after = tree / "DEBIAN/postinst"
        after.write_text("#!/bin/sh\nset -e\nsystemd-sysusers\nsystemd-tmpfiles --create\nsystemctl daemon-reload\n")
        after.chmod(0o755)
        subprocess.run(["dpkg-deb", "-Zgzip", "-z1", "--build", tree, path], check=True, capture_output=True)


@pytest.fixture
def pool(root: None) -> Iterator[TestPool]:
    """The machine's pool in its present size. No other test changes it meanwhile."""
    with reserved(SIZE, 0) as pool:
        yield pool


@pytest.fixture(scope="module")
def bare(root: None, collections: Path) -> Iterator[Machine]:
    """A machine with the collection, without ktaskfs."""

    def fill(layer: Path) -> None:
        place = layer / PLACE.removeprefix("/")
        place.mkdir(parents=True)
        subprocess.run(["cp", "-r", f"{collections}/.", place], check=True)
        (place / "role.yml").write_text(PLAYBOOK)
        make_package(place / "ktaskfs.deb")

    with booted_with(fill, SETUP) as machine:
        yield machine


class Controlled:
    """A machine that configures itself by the role."""

    def __init__(self, machine: Machine, programs: Path) -> None:
        self.machine = machine
        self._ansible = Ansible(programs, Path(PLACE), Path("/run/ansible"), machine.prefix)

    def play(self, *words: str, **variables: Any) -> Played:
        """Run the role with variables."""
        given = {"ansible_python_interpreter": "/usr/bin/python3", **variables}
        return self._ansible.play("localhost,", f"{PLACE}/role.yml", "--connection=local", *words, **given)

    def facts(self) -> dict[str, Any]:
        """Returns the host's facts about ktaskfs."""
        found: dict[str, Any] = json.loads(self.machine.out("/etc/ansible/facts.d/ktaskfs.fact"))
        return found


@pytest.fixture
def controlled(bare: Machine, newest: Path) -> Controlled:
    return Controlled(bare, newest)


@pytest.fixture
def installed(controlled: Controlled) -> Controlled:
    """The machine after a play of the role, by an earlier test or by this one."""
    if controlled.machine.run("test", "-e", "/etc/ansible/facts.d/ktaskfs.fact").status != 0:
        done = controlled.play(service_package=f"{PLACE}/ktaskfs.deb")
        assert done.outcome.status == 0, done.failures
    return controlled


def test_from_a_package(controlled: Controlled) -> None:
    machine = controlled.machine
    variables = {
        "service_package": f"{PLACE}/ktaskfs.deb",
        "service_config": {"max_threads": 3, "cpu_percent": 50},
        "service_members": ["ann"],
    }
    assert machine.run("test", "-e", "/usr/sbin/ktaskfs").status != 0
    first = controlled.play(**variables)
    assert first.outcome.status == 0, first.failures
    assert machine.show(UNIT, "ActiveState") == "active"
    assert machine.out("systemctl", "is-enabled", UNIT) == "enabled\n"
    until(lambda: machine.out("cat", TUNABLE) == "3\n", "the daemon has the tunable")
    assert "ktask" in machine.out("id", "--name", "--groups", "ann").split()
    facts = controlled.facts()
    assert (facts["mounted"], facts["version"], facts["tasks"]) == (True, VERSION, {})
    assert {pool["size"] for pool in facts["pools"]} >= {"2M"}

    invocation = machine.show(UNIT, "InvocationID")
    second = controlled.play(**{**variables, "service_config": {"max_threads": 5, "cpu_percent": 50}})
    assert second.outcome.status == 0, second.failures
    assert {task for task, _, result in second.returned if result.get("changed")} == {
        f"{ROLE} : Write the tunables",
        f"{ROLE} : Reload ktaskfs",
    }, "what is as it should be is not changed"
    until(lambda: machine.out("cat", TUNABLE) == "5\n", "the daemon has the new value")
    assert machine.show(UNIT, "InvocationID") == invocation, "it was not restarted"


def test_tunables_are_checked_before_they_are_written(installed: Controlled) -> None:
    before = installed.machine.out("cat", "/etc/ktaskfs.conf")
    played = installed.play("--start-at-task=Write the tunables", service_config={"max_thread": 3})
    ((task, _, _),) = played.failures
    assert task == f"{ROLE} : Write the tunables"
    assert "there is no tunable 'max_thread'" in str(played.of(task))
    assert installed.machine.out("cat", "/etc/ktaskfs.conf") == before


def test_pools_last_over_a_boot(installed: Controlled, pool: TestPool) -> None:
    pages = pool.total + PAGES
    words = ["--start-at-task=Make the pools"]
    wanted = {"size": "2M", "pages": pages}
    is_one_node = len(list(Path("/sys/devices/system/node").glob("node[0-9]*"))) == 1
    variables = {"service_pools": [wanted, {**wanted, "nodes": [0]}] if is_one_node else [wanted]}
    first = installed.play(*words, **variables)
    assert first.outcome.status == 0, first.failures
    assert pool.total == pages
    saved = installed.machine.out("cat", "/etc/tmpfiles.d/ktaskfs-pools.conf")
    assert f"hugepages-2048kB/nr_hugepages - - - - {pages}\n" in saved
    second = installed.play(*words, **variables)
    assert (second.outcome.status, second.changed) == (0, {"localhost": 0}), second.returned


def test_a_failed_build_is_done_again(controlled: Controlled) -> None:
    """Also where an older build is installed."""
    machine = controlled.machine
    controlled.play(service_package=f"{PLACE}/ktaskfs.deb")
    assert machine.sh(SOURCE).status == 0
    variables = {
        "service_install": "source",
        "service_source_repository": "/opt/upstream",
        "service_source_directory": "/opt/clone",
        "service_source_prefix": "/opt/built",
    }
    build = f"{ROLE} : Build and install it"

    def played() -> tuple[int, bool]:
        outcome = controlled.play(**variables)
        return outcome.outcome.status, build in {task for task, _, result in outcome.returned if result.get("changed")}

    assert played() == (0, True)
    assert played() == (0, False)
    assert machine.sh("touch /opt/broken; git -C /opt/upstream commit --quiet --allow-empty --message=2").status == 0
    ((task, _, _),) = controlled.play(**variables).failures
    assert task == build
    assert machine.sh("rm /opt/broken").status == 0
    assert played() == (0, True)
    assert played() == (0, False)


def test_the_other_unit_is_not_started_at_boot(controlled: Controlled) -> None:
    machine = controlled.machine
    units = [UNIT, "ktaskfs-confined.service"]
    controlled.play(service_package=f"{PLACE}/ktaskfs.deb")
    for wanted in (*reversed(units), UNIT):
        words = ["--start-at-task=Stop and disable the other unit"]
        assert controlled.play(*words, service_unit=wanted, service_install="none").outcome.status == 0
        enabled = [unit for unit in units if machine.run("systemctl", "is-enabled", unit).out == "enabled\n"]
        active = [unit for unit in units if machine.show(unit, "ActiveState") == "active"]
        assert (enabled, active) == ([wanted], [wanted])
