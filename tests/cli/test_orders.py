"""``ktaskfs run --json`` takes commands on standard input while it runs."""

from __future__ import annotations

import json
import os
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.daemon import ROOT
from tests.support.poll import DEADLINE, until
from tests.support.slow import SIZE, stop

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.cli.conftest import Command

Process = subprocess.Popen[str]
SPEC = ("clear", "name=slow", "rate_max=1K", "chunk=4K")
pytestmark = pytest.mark.usefixtures("patient")


@pytest.fixture
def steered(command: Command, memory: Path) -> Iterator[Process]:
    """The command while it follows a task that does not end by itself."""
    with (memory / "large").open("wb") as stream:
        stream.truncate(SIZE)
    words = command.words("run", "--json", *SPEC, f"path={memory}/large")
    pipe = subprocess.PIPE
    with subprocess.Popen(words, cwd=ROOT, stdin=pipe, stdout=pipe, stderr=pipe, text=True) as process:
        until(lambda: command.mount.cat("tasks/slow/state").out == "running\n", "the task runs")
        yield process
        process.kill()
    if command.mount.cat("tasks/slow/state").out in ("running\n", "paused\n"):
        stop(command.mount, "slow")


def say(process: Process, text: str) -> None:
    assert process.stdin is not None
    process.stdin.write(text)
    process.stdin.flush()


def answers(process: Process, count: int) -> list[dict[str, Any]]:
    """Returns the next answers to commands, and skips figures of tasks."""
    assert process.stdout is not None
    found: list[dict[str, Any]] = []
    while len(found) < count:
        told = json.loads(process.stdout.readline())
        found += [told] if "command" in told else []
    return found


def test_commands_are_carried_out_and_answered(command: Command, steered: Process) -> None:
    said = ["pause", "resume", "rate_max=8K", "max_threads=2"]
    say(steered, "".join(f"{line}\n" for line in said))
    worked = {"name": "slow", "errno": None, "error": None}
    assert answers(steered, 4) == [worked | {"command": line} for line in said]
    assert command.mount.read("tasks/slow/rate_max") == "8K\n"
    say(steered, "cancel\n")
    assert answers(steered, 1) == [worked | {"command": "cancel"}]
    out, _ = steered.communicate(timeout=DEADLINE)
    assert steered.returncode == 3
    assert json.loads(out.splitlines()[-1])["state"] == "cancelled"


def test_what_is_no_command_is_answered_too(command: Command, steered: Process) -> None:
    said = ["pasue", "control=kill", "rate_max=quick", "nothing=1", "\x1b" * 5000]
    say(steered, "\n\n" + "".join(f"{line}\n" for line in said))
    found = answers(steered, 5)
    assert [each["errno"] for each in found] == [22, 22, 22, 2, 22]
    assert [each["name"] for each in found] == [None, None, "slow", "slow", None]
    assert found[0]["error"] == (
        "'pasue' is not a command: write one of cancel, pause, resume, kill, detach, KEY=VALUE"
    )
    assert command.mount.read("tasks/slow/state") == "running\n"


def test_detach_leaves_the_task(command: Command, steered: Process) -> None:
    say(steered, "detach\npause\n")
    assert steered.wait(DEADLINE) == 0
    assert command.mount.read("tasks/slow/state") == "running\n"


def test_the_end_of_the_commands_is_none(command: Command, steered: Process) -> None:
    """Neither a lost connection nor an incomplete line cancels the task."""
    assert steered.stdin is not None
    assert steered.stdout is not None
    say(steered, "cancel")
    steered.stdin.close()
    for _ in range(3):
        assert json.loads(steered.stdout.readline())["state"] == "running"
    stop(command.mount, "slow")
    assert steered.wait(DEADLINE) == 3


def test_the_program_ends_soon_after_its_reader(command: Command, steered: Process) -> None:
    assert steered.stdin is not None
    assert steered.stdout is not None
    steered.stdin.close()
    steered.stdout.close()
    assert steered.wait(DEADLINE) == -13
    assert command.mount.read("tasks/slow/state") == "running\n"


def test_a_loop_that_reads_from_a_file_keeps_its_lines(command: Command, memory: Path) -> None:
    lines = memory / "lines"
    lines.write_text("one\ncancel\nthree\n")
    words = command.words("run", "--json", "checksum", f"path={memory}/file")
    with lines.open() as stream:
        subprocess.run(words, cwd=ROOT, stdin=stream, stdout=subprocess.DEVNULL, check=True)
        assert os.read(stream.fileno(), 4096) == lines.read_bytes()
