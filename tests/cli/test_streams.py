"""The command with standard streams that are closed or full."""

from __future__ import annotations

import shlex
import signal
import sys
from typing import TYPE_CHECKING

import pytest

from tests.support.daemon import ROOT
from tests.support.shell import Outcome, run

if TYPE_CHECKING:
    from pathlib import Path

    from tests.cli.conftest import Command
    from tests.support.users import User


def redirected(command: Command, redirection: str, *arguments: str) -> Outcome:
    return run("bash", "-c", f"{shlex.join(command.words(*arguments))} {redirection}", cwd=ROOT)


@pytest.mark.parametrize("words", [["ls"], ["ls", "--json"], ["show", "sum"], ["run", "checksum", "replace=1"]])
def test_a_full_disk_is_told_and_fails(command: Command, memory: Path, words: list[str]) -> None:
    spec = ["checksum", f"path={memory}/file", "name=sum"]
    assert command("run", *spec).status == 0
    outcome = redirected(command, ">/dev/full", *words, *(spec[1:] if words[0] == "run" else []))
    assert (outcome.status, outcome.out) == (1, "")
    assert outcome.err.splitlines()[-1] == "ktaskfs: standard output: No space left on device"
    assert "Traceback" not in outcome.err


def test_a_limit_on_processes_is_no_trouble_of_the_output(
    command: Command, two_users: tuple[User, User], public_root: Path
) -> None:
    words = ["bash", "-c", 'ulimit -u 1; exec "$@"', "-", *command.words("ls")]
    refused = run(*words, user=two_users[0], cwd=public_root)
    said = "ktaskfs: start a second process: Resource temporarily unavailable\n"
    assert (refused.status, refused.out, refused.err) == (1, "", said)


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("words", [["--version"], ["--help"], ["run", "--help"], ["mount", "--help"]])
def test_help_for_a_full_disk_fails_without_a_traceback(words: list[str], unbuffered: str) -> None:
    script = f"{shlex.join([sys.executable, '-m', 'ktaskfs.cli.main', *words])} >/dev/full"
    outcome = run("bash", "-c", script, cwd=ROOT, env={"PYTHONUNBUFFERED": unbuffered})
    assert outcome == Outcome(1, "", "ktaskfs: standard output: No space left on device\n")


def test_a_wrong_command_line_is_not_told_on_standard_output() -> None:
    script = f"{shlex.join([sys.executable, '-m', 'ktaskfs.cli.main', 'run', '--nonsense'])} 2>&-"
    assert run("bash", "-c", script, cwd=ROOT) == Outcome(2, "", "")


def test_events_end_with_their_reader(command: Command) -> None:
    """As soon as nobody reads, not at the next event."""
    script = f"set -o pipefail; {shlex.join(command.words('events'))} | true"
    assert run("bash", "-c", script, cwd=ROOT) == Outcome(128 + signal.SIGPIPE, "", "")


def test_closed_streams_are_no_files_of_the_mount(command: Command, memory: Path) -> None:
    """A file opened later would get the descriptor of the closed stream, and then the output."""
    for number, redirection in enumerate((">&-", ">&- 2>&-", "<&- >&- 2>&-")):
        spec = ["checksum", f"path={memory}/file", f"name=sum-{number}"]
        assert redirected(command, redirection, "run", *spec).status == 0
        assert command.mount.read(f"tasks/sum-{number}/state") == "done\n"
        assert redirected(command, redirection, "ls").status == 0
    assert command.mount.read("info/error_log") == ""


def test_input_that_cannot_be_read_is_no_trouble_of_the_output(command: Command) -> None:
    said = "ktaskfs: standard input: Bad file descriptor\n"
    assert redirected(command, "0>/dev/null", "run", "-") == Outcome(1, "", said)
