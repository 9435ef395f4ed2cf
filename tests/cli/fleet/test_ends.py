"""Hosts whose command closes its output and lives on."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from typing import TYPE_CHECKING, Any

from tests.cli.fleet.conftest import SPEC
from tests.support.daemon import ROOT
from tests.support.poll import DEADLINE, until
from tests.support.shell import run

if TYPE_CHECKING:
    from pathlib import Path

    from tests.cli.fleet.conftest import Hosts


def test_hosts_that_close_their_output_and_do_not_end_are_waited_for_together(hosts: Hosts) -> None:
    """Meanwhile the others are heard. The time of one for each host would be more than a minute."""
    found: list[dict[str, Any]] = []

    def quick_one_is_heard_first() -> bool:  # not if it stalls for the five seconds that the others have
        with subprocess.Popen(
            hosts.words("shut[1-30],quick1", "--json"), cwd=ROOT, stdout=subprocess.PIPE, text=True
        ) as command:
            assert command.stdout is not None
            found[:] = [json.loads(line) for line in command.stdout]
            assert command.wait(DEADLINE) == 1
        ends = [each["host"] for each in found if each["host"] and each["state"] != "running"]
        return ends[:1] == ["quick1"]

    until(quick_one_is_heard_first, "the quick one is heard first")
    assert found[-1]["summary"][-1] == {
        "state": "lost",
        "error": "the connection ended",
        "count": 30,
        "hosts": "shut[1-30]",
    }


def test_a_timeout_is_kept_while_hosts_do_not_end(hosts: Hosts) -> None:
    outcome = hosts.until_said("timeout (30): shut[1-30]: not done after 1 s", "shut[1-30]", "--timeout", "1")
    assert outcome.status == 1


def test_a_host_has_time_to_end_after_its_output(hosts: Hosts) -> None:
    outcome = hosts.until_said("started (3): late[1-3]", "late[1-3]", "--detach")
    assert (outcome.status, outcome.err.splitlines()[-1]) == (0, "started (3): late[1-3]")
    assert sum(line.startswith("end ") for line in hosts.log()) == 3


def test_a_gateway_that_closes_its_output_and_does_not_end_is_given_up(tmp_path: Path) -> None:
    ssh, topology = tmp_path / "ssh", tmp_path / "topology.conf"
    ssh.write_text(f"#!/bin/sh\necho a banner >&2; exec sleep {DEADLINE} >&- 2>&-\n")
    ssh.chmod(0o755)
    topology.write_text(f"[routes]\n{socket.gethostname().partition('.')[0]}: gw1\ngw1: hv[1-2]\n")
    words = [sys.executable, "-m", "ktaskfs.cli.main", "run", "--hosts", "hv[1-2]", "--topology", str(topology), SPEC]
    outcome = run(*words, cwd=ROOT, env={"PATH": f"{tmp_path}:{os.environ['PATH']}"})
    assert (outcome.status, "gw1: a banner\n" in outcome.err) == (1, True), outcome
    assert "unreachable (2): hv[1-2]: no gateway to it is left\n" in outcome.err
