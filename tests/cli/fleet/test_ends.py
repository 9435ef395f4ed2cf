"""Hosts whose command closes its output and lives on."""

from __future__ import annotations

import json
import subprocess
from typing import TYPE_CHECKING

from tests.support.daemon import ROOT
from tests.support.poll import DEADLINE

if TYPE_CHECKING:
    from tests.cli.fleet.conftest import Hosts


def test_hosts_that_close_their_output_and_do_not_end_are_waited_for_together(hosts: Hosts) -> None:
    """Meanwhile the others are heard. The time of one for each host would be more than a minute."""
    with subprocess.Popen(
        hosts.words("shut[1-30],quick1", "--json"), cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as command:
        assert command.stdout is not None
        found = [json.loads(line) for line in command.stdout]
        assert command.wait(DEADLINE) == 1
    ends = [each["host"] for each in found if each["host"] and each["state"] != "running"]
    assert ends[0] == "quick1"
    assert found[-1]["summary"][-1] == {
        "state": "lost",
        "error": "the connection ended",
        "count": 30,
        "hosts": "shut[1-30]",
    }


def test_a_timeout_is_kept_while_hosts_do_not_end(hosts: Hosts) -> None:
    outcome = hosts("shut[1-30]", "--timeout", "1")
    assert outcome.status == 1
    assert "timeout (30): shut[1-30]: not done after 1 s" in outcome.err


def test_a_host_has_time_to_end_after_its_output(hosts: Hosts) -> None:
    outcome = hosts("late[1-3]", "--detach")
    assert (outcome.status, outcome.err.splitlines()[-1]) == (0, "started (3): late[1-3]")
    assert sum(line.startswith("end ") for line in hosts.log()) == 3
