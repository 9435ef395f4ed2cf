"""``--hosts`` with the ClusterShell that this release of Debian has; the other tests take that of pip."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

import pytest

from tests.cli.fleet.conftest import Hosts
from tests.support.packages import Unavailable, cache, unpacked
from tests.support.shell import run

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def environment(root: None) -> dict[str, str]:
    """Variables with which Python finds the package's modules first."""
    try:
        with cache():
            place = unpacked("python3-clustershell") / "usr/lib/python3/dist-packages"
    except Unavailable as error:
        pytest.skip(str(error))
    found = {**os.environ, "PYTHONPATH": str(place)}
    script = "import ClusterShell; print(ClusterShell.__file__)"
    assert run(sys.executable, "-c", script, env=found).out.startswith(str(place))
    return found


def test_hosts(environment: dict[str, str], tmp_path: Path) -> None:
    hosts = Hosts(tmp_path)
    outcome = hosts("quick[1-3],failed1", env=environment)
    assert (outcome.status, "Traceback" in outcome.err) == (1, False)
    assert "done (3): quick[1-3]" in outcome.err
    started = hosts.until_said("started (3): late[1-3]\n", "late[1-3]", "--detach", env=environment)
    assert started.err.endswith("started (3): late[1-3]\n")
    hosts.until_said("timeout (2): shut[1-2]", "shut[1-2]", "--timeout", "1", env=environment)
