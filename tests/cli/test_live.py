"""``ktaskfs run`` on a terminal: a shell starts it, and a user presses keys."""

from __future__ import annotations

import io
import shlex
from typing import TYPE_CHECKING, Final

import pytest
from rich.console import Console

from ktaskfs.cli.follow import Standing
from ktaskfs.cli.live import LiveReport
from tests.support.poll import until
from tests.support.slow import start_slow, stop
from tests.support.terminal import CONTROL_C, Terminal

if TYPE_CHECKING:
    from pathlib import Path

    from tests.cli.conftest import Command

CONTROL_Z: Final = "\x1a"
CONTROL_BACKSLASH: Final = "\x1c"
HIDE_CURSOR: Final = "\x1b[?25l"


@pytest.fixture
def lasting(memory: Path) -> list[str]:
    """Returns a spec of a task that runs until ``let_end``."""
    (memory / "large").write_bytes(b"x" * (8 << 20))
    return ["checksum", f"path={memory}/large", "rate_max=32K", "chunk=32K", "name=sum"]


def let_end(command: Command, terminal: Terminal) -> int:
    """Lets the task of ``lasting`` end when it is seen to run; returns the exit status of the command."""
    terminal.sees("running", "%")
    assert command.mount.write("tasks/sum/rate_max", "max") == (0, None)
    return terminal.end()


def test_a_short_task_has_a_line_and_nothing_is_drawn(command: Command, memory: Path) -> None:
    """It has ended at the first look, as a short one has."""
    spec = ("checksum", f"path={memory}/file", "name=sum")
    assert command("run", *spec).status == 0
    words = command.words("run", "--if-exists=join", *spec)
    with Terminal(words[0], "-X", "importtime", *words[1:], columns=500) as terminal:
        assert terminal.end() == 0
        imported = {line.rpartition("|")[2].strip() for line in terminal.text.splitlines()}
        assert "sum: done 64.0KiB in " in terminal.text
        assert "\x1b" not in terminal.raw
    assert "ktaskfs.cli.reports" in imported
    assert not any(name.partition(".")[0] == "rich" for name in imported)


def test_a_line_with_a_bar_to_the_end_and_the_result_below(command: Command, lasting: list[str]) -> None:
    with Terminal(*command.words("run", *lasting)) as terminal:
        assert let_end(command, terminal) == 0
        last = terminal.text.strip().splitlines()[-2:]
    assert last[0].split()[0] == "sum"
    assert "━━━━" in last[0]
    assert "100.0%" in last[0]
    assert "8.0MiB/8.0MiB" in last[0]
    assert last[0].split()[-1] == "done"
    assert f"{last[1].strip()}\n" == command.mount.read("tasks/sum/result")


def test_control_c_typed_in_a_shell(command: Command, memory: Path) -> None:
    """The task's processes do not belong to the terminal, so they get no signal from it."""
    script = shlex.join(command.words("run", f"clear path={memory}/file rate_max=1K chunk=4K name=slow"))
    with Terminal("bash", "--norc", "-c", f"{script}; echo status $?") as terminal:
        terminal.sees("slow", "running", "%")
        terminal.type(CONTROL_C)
        terminal.sees("cancelling; ^C again leaves", "slow was cancelled", "status 130")
        terminal.end()
    assert command.mount.read("tasks/slow/state") == "cancelled\n"


def test_control_c_in_wait_says_how_to_go_on(command: Command, memory: Path) -> None:
    start_slow(command.mount, memory, "slow")
    with Terminal(*command.words("wait", "slow")) as terminal:
        terminal.sees("slow", "running")
        terminal.type(CONTROL_C)
        assert terminal.end() == 130
        assert f"follow them with: ktaskfs wait -m {command.mount.path} slow" in terminal.text.replace("\r\n", "")
    stop(command.mount, "slow")


@pytest.mark.parametrize("term", ["dumb", "unknown", ""])
def test_plain_lines_where_the_terminal_is_dumb(command: Command, lasting: list[str], term: str) -> None:
    with Terminal(*command.words("run", *lasting), env={"TERM": term}) as terminal:
        assert let_end(command, terminal) == 0
        assert "\x1b" not in terminal.raw
        assert "sum: running" in terminal.text
        assert "sum: done 8.0MiB in " in terminal.text


@pytest.mark.parametrize("key", [CONTROL_Z, CONTROL_BACKSLASH])
def test_bars_leave_the_cursor_on_the_screen(command: Command, memory: Path, key: str) -> None:
    """However the command stops or ends."""
    words = command.words("run", f"clear path={memory}/file rate_max=1K chunk=4K name=slow")
    with Terminal("bash", "--norc", "-i", env={"PS1": "$ "}) as terminal:
        terminal.type(f"ulimit -c 0; {shlex.join(words)}\n")
        terminal.sees("slow", "running", "%")
        terminal.type(key)
        terminal.sees({CONTROL_Z: "Stopped", CONTROL_BACKSLASH: "Quit"}[key])
        assert HIDE_CURSOR not in terminal.raw
        if key == CONTROL_Z:
            before = len(terminal.raw)
            terminal.type("fg\n")
            until(lambda: "running" in terminal.raw[before:], "it is drawn again")
    stop(command.mount, "slow")


def test_nothing_heavy_is_imported(command: Command, lasting: list[str]) -> None:
    """rich draws the bars. The command imports no other slow module for them."""
    python, *words = command.words("run", *lasting)
    with Terminal(python, "-X", "importtime", *words, columns=500) as terminal:
        assert let_end(command, terminal) == 0
        imported = {line.rpartition("|")[2].strip() for line in terminal.text.splitlines()}
    assert "ktaskfs.cli.live" in imported
    assert {"textual", "asyncio", "trio", "psutil", "ClusterShell"} & imported == set()


def test_no_colour(command: Command, lasting: list[str]) -> None:
    words = command.words("run", *lasting)
    for env, coloured in (({}, True), ({"NO_COLOR": "1"}, False)):
        with Terminal(*words, "replace=1", env=env) as terminal:
            assert let_end(command, terminal) == 0
            assert ("\x1b[32m" in terminal.raw) is coloured


def test_a_long_result_does_not_flood_the_terminal(command: Command, memory: Path) -> None:
    (memory / "long").write_bytes(b"x" * (100 << 12))
    words = command.words("run", "verify", f"path={memory}/long", "pattern=00", "name=v")
    with Terminal(*words, columns=200) as terminal:
        assert terminal.end() == 1
        lines = command.mount.read("tasks/v/result").splitlines()
        assert len(lines) > 100
        assert lines[19] in terminal.text
        assert lines[20] not in terminal.text
        assert f"{len(lines) - 20} more lines are in tasks/v/result" in terminal.text
    assert command("wait", "v").out == command.mount.read("tasks/v/result")


def test_a_pipe_gets_the_result_alone(command: Command, lasting: list[str]) -> None:
    script = shlex.join(command.words("run", *lasting))
    with Terminal("bash", "--norc", "-c", f"{script} | tr a-z A-Z") as terminal:
        assert let_end(command, terminal) == 0
        assert command.mount.read("tasks/sum/result").upper().strip() in terminal.text
        assert "━━━━" in terminal.text
    until(lambda: command.mount.read("tasks/sum/state") == "done\n", "it is done")


def drawn(standings: list[Standing], *, width: int, height: int) -> list[str]:
    """Returns the lines of one picture."""
    out = io.StringIO()
    console = Console(file=out, width=width, height=height, force_terminal=True, color_system=None, _environ={})
    report = LiveReport(console)
    out.truncate(0)
    out.seek(0)
    report.show(standings)
    said = out.getvalue()
    report.close()
    return [line.replace("\x1b[2K", "").replace("\r", "").rstrip() for line in said.splitlines()]


def standing(number: int, state: str = "running", name: str = "task") -> Standing:
    figures = {
        "units": "bytes",
        "percent": 46.1,
        "done": 31675383808,
        "total": 68719476736,
        "speed": 20 << 30,
        "finish_usec": 1900000,
        "elapsed_usec": 5000000,
    }
    return Standing(f"{name}-{number}", state, figures)


@pytest.mark.parametrize(("width", "height"), [(80, 24), (40, 10), (200, 60), (20, 3)])
def test_a_thousand_tasks_fit(width: int, height: int) -> None:
    many = [standing(n, "done") for n in range(500)] + [standing(n, name="long" * 30) for n in range(500, 1000)]
    lines = drawn(many, width=width, height=height)
    assert len(lines) <= height - 1
    assert all(len(line) <= width for line in lines)
    assert f"{1000 - (len(lines) - 1)} more, 500 ended".startswith(lines[-1].rstrip("…"))
    assert all("long" in line for line in lines[:-1])


@pytest.mark.parametrize("width", [20, 40, 59, 60, 79, 80, 200])
def test_only_a_name_is_shortened(width: int) -> None:
    """A line has whole figures, or none of them."""
    (line,) = drawn([standing(1, name="n" * 30)], width=width, height=24)
    name, *rest = line.split()
    figures = ["29.5GiB/64.0GiB", "20.0GiB/s", "1.9s"] if width >= 60 else []
    assert rest[width >= 80 :] == ["46.1%", *figures, "running"]
    assert name.startswith("nn")
    assert name.endswith("…")


def test_what_stands_on_a_line() -> None:
    (line,) = drawn([standing(1)], width=80, height=24)
    assert line.split() == ["task-1", *line.split()[1:2], "46.1%", "29.5GiB/64.0GiB", "20.0GiB/s", "1.9s", "running"]
    (line,) = drawn([standing(1)._replace(stale=True)], width=80, height=24)
    assert line.endswith("no daemon")
    (line,) = drawn([Standing("new", "queued", {})], width=80, height=24)
    assert line.split() == ["new", "queued"]
