"""Two NUMA nodes: the tests below guest/ are run in a virtual machine, all in one, and each is a test here."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from tests.numa import machine
from tests.numa.packages import Unavailable
from tests.support.daemon import ROOT, interpreter

if TYPE_CHECKING:
    from collections.abc import Mapping

GUEST: Final = Path(__file__).parent / "guest"
NAMES: Final = re.findall(
    r"^def (test_\w+)\(", "".join(path.read_text() for path in GUEST.glob("test_*.py")), re.MULTILINE
)
ENDED: Final = re.compile(r"^(PASSED|FAILED|ERROR|SKIPPED) \S*::(test_\w+)", re.MULTILINE)


@pytest.fixture(scope="session")
def outcomes() -> tuple[Mapping[str, list[str]], str]:
    """How each test ended in the machine (several times, with parameters), and all that it printed."""
    pytest_in_there = [
        interpreter(ROOT),
        "-m",
        "pytest",
        "-q",
        "-rA",
        "--tb=short",
        "--durations=5",
        "-p",
        "no:cacheprovider",
        "-p",
        "no:hypothesispytest",
        str(GUEST),
    ]
    settings = "KTASKFS_NUMA_GUEST=1 KTASKFS_REQUIRE_ALL=1 KTASKFS_TEST_PATIENCE=8"
    command = f"cd {shlex.quote(str(ROOT))} && {settings} {shlex.join(pytest_in_there)}"
    try:
        _, output = machine.run(command)
    except Unavailable as error:
        pytest.skip(str(error))
    found: dict[str, list[str]] = {}
    for word, name in ENDED.findall(output):
        found.setdefault(name, []).append(word)
    return found, output


@pytest.mark.parametrize("name", NAMES)
def test_in_the_machine(outcomes: tuple[Mapping[str, list[str]], str], name: str) -> None:
    found, output = outcomes
    assert set(found.get(name, [])) == {"PASSED"}, output
