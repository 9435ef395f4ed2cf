"""Runs playbooks with a release of Ansible."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from tests.support.poll import DEADLINE
from tests.support.shell import Outcome, run

if TYPE_CHECKING:
    from collections.abc import Sequence

SETTINGS: Final = {
    "ANSIBLE_DEPRECATION_WARNINGS": "0",
    "ANSIBLE_FORCE_COLOR": "0",
    "ANSIBLE_NOCOLOR": "1",
    "ANSIBLE_TIMEOUT": f"{DEADLINE:.0f}",
    "ANSIBLE_PIPELINING": "1",
    "ANSIBLE_CALLBACK_PLUGINS": str(Path(__file__).with_name("callback")),
    "ANSIBLE_STDOUT_CALLBACK": "told",
    "LC_ALL": "C.UTF-8",
    "SYSTEMD_BUS_TIMEOUT": f"{DEADLINE:.0f}",
    "PYTHONDONTWRITEBYTECODE": "1",
}


@dataclass(frozen=True)
class Played:
    """The end of a playbook.

    counts:   numbers by host and kind: ok, changed, failures, unreachable and so on.
    returned: the name of a task, a host, and the task's result there.
    """

    outcome: Outcome
    counts: dict[str, dict[str, int]]
    returned: list[tuple[str, str, dict[str, Any]]]

    @property
    def changed(self) -> dict[str, int]:
        """The number of tasks that changed something, by host."""
        return {host: counts["changed"] for host, counts in self.counts.items()}

    @property
    def failures(self) -> list[tuple[str, str, object]]:
        """Failures that were not ignored: the name of the task, the host, and the message."""
        return [(task, host, result.get("msg")) for task, host, result in self.returned if result["failed"]]

    def of(self, task: str) -> dict[str, dict[str, Any]]:
        """Returns the results of a task, by host."""
        return {host: result for name, host, result in self.returned if name == task}


class Ansible:
    """Runs commands of Ansible with the collection. ``prefix`` comes before each command."""

    def __init__(self, programs: Path, collections: Path, home: Path, prefix: Sequence[str] = ()) -> None:
        self._programs, self._collections, self._home, self._prefix = programs, collections, home, prefix
        self._env = {**SETTINGS, "ANSIBLE_COLLECTIONS_PATH": str(collections), "ANSIBLE_HOME": str(home)}
        self._env["ANSIBLE_LOCAL_TEMP"] = str(home / "tmp")
        # Hosts have no more of this machine's files to themselves than what is in memory.
        self._env["ANSIBLE_REMOTE_TMP"] = "/run/ansible" if prefix else str(home / "remote")

    def with_programs(self, programs: Path) -> Ansible:
        """Returns the same with another release of Ansible."""
        return Ansible(programs, self._collections, self._home, self._prefix)

    def __call__(self, program: str, *words: str, cwd: Path | None = None, **variables: str) -> Outcome:
        """Run a program of Ansible to its end, with additional environment variables."""
        path = f"{self._programs}:{os.environ['PATH']}"
        command = [*self._prefix, str(self._programs / program), *words]
        return run(*command, env={**self._env, "PATH": path, **variables}, cwd=cwd, timeout=4 * DEADLINE)

    def play(self, inventory: str, playbook: str, *words: str, **variables: Any) -> Played:
        """Run a playbook with variables."""
        outcome = self("ansible-playbook", "-i", inventory, playbook, "-e", json.dumps(variables), *words)
        told = [json.loads(line) for line in outcome.out.splitlines() if line.startswith("{")]
        assert told, outcome
        *results, last = told
        returned = [(each["task"], each["host"], each["result"]) for each in results]
        return Played(outcome, last["counts"], returned)
