"""``ktaskfs run --hosts`` with simulated hosts: each is a process of this machine, and its name says what it does."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from tests.support.daemon import ROOT
from tests.support.poll import until
from tests.support.shell import Outcome, run

if TYPE_CHECKING:
    from collections.abc import Mapping

AGENT: Final = Path(__file__).with_name("agent.sh")
SPEC: Final = "fallocate path=/x length=1G"


class Hosts:
    """The command with its hosts, and a log of what the hosts received."""

    def __init__(self, directory: Path) -> None:
        self._log = directory / "log"
        self._log.touch()

    def words(self, hosts: str, *options: str, spec: str = SPEC) -> list[str]:
        """Returns the command line."""
        via = f"{AGENT} {shlex.quote(str(self._log))} %h"
        return [sys.executable, "-m", "ktaskfs.cli.main", "run", "--hosts", hosts, "--via", via, *options, spec]

    def __call__(self, hosts: str, *options: str, spec: str = SPEC, env: Mapping[str, str] | None = None) -> Outcome:
        return run(*self.words(hosts, *options, spec=spec), cwd=ROOT, env=env)

    def until_said(self, words: str, *arguments: str, env: Mapping[str, str] | None = None) -> Outcome:
        """Run the command until it says ``words`` on standard error: not while a process stalls longer than it waits.

        The log is that of the last run.
        """
        outcomes: list[Outcome] = []

        def says() -> bool:
            self._log.write_text("")
            outcomes[:] = [self(*arguments, env=env)]
            return words in outcomes[0].err

        try:
            until(says, f"it says: {words}")
        except AssertionError as error:
            error.add_note(f"it said: {outcomes[0].err}")
            raise
        return outcomes[0]

    def log(self) -> list[str]:
        """Returns the lines of the hosts' log."""
        return self._log.read_text().splitlines()

    def events(self) -> list[tuple[str, str]]:
        """Returns (event, host) for each begin and end of a host, in order of time."""
        found = [line.split()[:2] for line in self.log()]
        return [(what, host) for what, host in found if what in ("begin", "end")]


@pytest.fixture
def hosts(tmp_path: Path) -> Hosts:
    """The command with simulated hosts on this machine."""
    return Hosts(tmp_path)
