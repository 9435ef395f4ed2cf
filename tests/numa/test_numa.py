"""The tests below guest/ are run in a virtual machine, those below selinux/ in another, and each is a test here.

The machines have two NUMA nodes, only version 2 of control groups, and AppArmor or SELinux.
"""

from __future__ import annotations

import ast
import re
import shlex
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from bench import harness, migration
from bench.harness import SMOKE
from bench.migration import command_inside
from tests.numa import machine, packages
from tests.support.benchmarks import EMULATED, check_report
from tests.support.daemon import ROOT, interpreter
from tests.support.packages import CACHE, Unavailable
from tests.systemd.machine import INSTALLED, install

if TYPE_CHECKING:
    from collections.abc import Iterator

HERE: Final = Path(__file__).parent


def names(directory: Path) -> Iterator[str]:
    """The tests there: those that a file defines, and those that it takes from elsewhere."""
    for path in sorted(directory.glob("test_*.py")):
        for statement in ast.parse(path.read_text()).body:
            if isinstance(statement, ast.FunctionDef):
                found = [statement.name]
            else:
                found = [each.name for each in statement.names] if isinstance(statement, ast.ImportFrom) else []
            yield from (name for name in found if name.startswith("test_"))


TIMEOUT: Final = machine.TIMEOUT + 60
"""The first test waits for all that is done in its machine."""
pytestmark = pytest.mark.timeout(TIMEOUT)

PATIENCE: Final = 16
"""KTASKFS_TEST_PATIENCE in the machine: a daemon starts in ten seconds on an idle host, in a minute on a busy one."""

ENDED: Final = re.compile(r"^(PASSED|FAILED|ERROR|SKIPPED) \S*::(test_\w+)", re.MULTILINE)


class Outcomes:
    """How each test of a directory ended in its machine (several times, with parameters), and all that was printed."""

    def __init__(self, directory: str, labels: str, more: str = "true") -> None:
        """``more`` is a command to run afterwards. Skips where there can be no machine."""
        unused = [word for name in ("cacheprovider", "hypothesispytest", "xdist") for word in ("-p", f"no:{name}")]
        options = ["-q", "-rA", "--tb=short", "--durations=5", f"--timeout={machine.TIMEOUT}", *unused]
        pytest_in_there = [interpreter(ROOT), "-m", "pytest", *options, str(HERE / directory)]
        settings = f"KTASKFS_NUMA_GUEST=1 KTASKFS_REQUIRE_ALL=1 KTASKFS_TEST_PATIENCE={PATIENCE}"
        settings += f" KTASKFS_TEST_CACHE={shlex.quote(str(CACHE))}"
        try:
            packages.install()
            with tempfile.TemporaryDirectory(dir=CACHE) as installed:  # the machine sees it there
                Path(installed).chmod(0o755)
                install(Path(installed))
                settings += f" {INSTALLED}={shlex.quote(installed)}"
                command = f"cd {shlex.quote(str(ROOT))} && {settings} {shlex.join(pytest_in_there)}"
                _, self.output = machine.run(f"{command}; {more}", labels)
        except Unavailable as error:
            pytest.skip(str(error))
        self._found: dict[str, list[str]] = {}
        for word, name in ENDED.findall(self.output):
            self._found.setdefault(name, []).append(word)

    def check(self, name: str) -> None:
        """It has run, and passed each time."""
        assert set(self._found.get(name, [])) == {"PASSED"}, self.output


@pytest.fixture(scope="session")
def outcomes() -> Outcomes:
    return Outcomes("guest", machine.APPARMOR, command_inside(SMOKE.size, SMOKE))


@pytest.fixture(scope="session")
def outcomes_under_selinux() -> Outcomes:
    return Outcomes("selinux", machine.SELINUX)


@pytest.mark.parametrize("name", [*names(HERE / "guest")])
def test_in_the_machine(outcomes: Outcomes, name: str) -> None:
    outcomes.check(name)


@pytest.mark.parametrize("name", [*names(HERE / "selinux")])
def test_under_selinux(outcomes_under_selinux: Outcomes, name: str) -> None:
    outcomes_under_selinux.check(name)


def test_the_benchmark_of_two_nodes(
    outcomes: Outcomes, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It boots a machine where there is one node. Here it is given what that which ran the tests has printed for it."""

    def ran(command: str) -> tuple[int, str]:
        assert command == command_inside(SMOKE.size, SMOKE)
        status = re.search(r"^status=(\d+)$", outcomes.output, re.MULTILINE)
        return int(status[1]) if status else -1, outcomes.output

    assert EMULATED == ["migration"]
    monkeypatch.setattr(machine, "run", ran)
    monkeypatch.setattr(sys, "argv", ["migration", "--smoke"])
    harness.main("migration", "Moving pages to another node", migration.measure)
    check_report(capsys.readouterr().out)
