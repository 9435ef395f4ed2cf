"""``ktaskfs run`` on a terminal, started by a shell, with keys pressed."""

from __future__ import annotations

import io
import re
import shlex
from typing import TYPE_CHECKING

import pytest

from ktaskfs.cli.follow import Standing
from ktaskfs.cli.live import LiveReport
from tests.support.poll import until
from tests.support.slow import start_slow, stop
from tests.support.terminal import CONTROL_C, SEQUENCE, Terminal

if TYPE_CHECKING:
    from pathlib import Path

    from tests.cli.conftest import Command


def test_a_line_with_a_bar_to_the_end_and_the_result_below(command: Command, memory: Path) -> None:
    with Terminal(*command.words("run", "checksum", f"path={memory}/file", "name=sum")) as terminal:
        assert terminal.end() == 0
        last = terminal.text.strip().splitlines()[-2:]
    assert last[0].split()[0] == "sum"
    assert "━━━━" in last[0]
    assert "100.0%" in last[0]
    assert "64.0KiB/64.0KiB" in last[0]
    assert last[0].split()[-1] == "done"
    assert f"{last[1].strip()}\n" == command.mount.read("tasks/sum/result")


def test_control_c_typed_in_a_shell(command: Command, memory: Path) -> None:
    """The task's processes do not hear it: they are not of the terminal."""
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


def test_plain_lines_where_the_terminal_is_dumb(command: Command, memory: Path) -> None:
    words = command.words("run", "checksum", f"path={memory}/file", "name=sum")
    with Terminal(*words, env={"TERM": "dumb"}) as terminal:
        assert terminal.end() == 0
        assert "\x1b" not in terminal.raw
        assert "sum: done 64.0KiB in " in terminal.text


def test_nothing_heavy_is_imported(command: Command, memory: Path) -> None:
    """A library that draws would take as much CPU as all else of a short command."""
    python, *words = command.words("run", "checksum", f"path={memory}/file")
    with Terminal(python, "-X", "importtime", *words, columns=500) as terminal:
        assert terminal.end() == 0
        imported = {line.rpartition("|")[2].strip() for line in terminal.text.splitlines()}
    assert "ktaskfs.cli.live" in imported
    assert {"rich", "textual", "asyncio", "threading", "ClusterShell"} & imported == set()


def test_no_colour(command: Command, memory: Path) -> None:
    words = command.words("run", "checksum", f"path={memory}/file", "name=sum")
    for env, coloured in (({}, True), ({"NO_COLOR": "1"}, False)):
        with Terminal(*words, "replace=1", env=env) as terminal:
            assert terminal.end() == 0
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


def test_a_pipe_gets_the_result_alone(command: Command, memory: Path) -> None:
    script = shlex.join(command.words("run", "checksum", f"path={memory}/file", "name=sum"))
    with Terminal("bash", "--norc", "-c", f"{script} | tr a-z A-Z") as terminal:
        assert terminal.end() == 0
        assert command.mount.read("tasks/sum/result").upper().strip() in terminal.text
        assert "━━━━" in terminal.text
    until(lambda: command.mount.read("tasks/sum/state") == "done\n", "it is done")


def drawn(standings: list[Standing], *, width: int, height: int, coloured: bool = True) -> list[str]:
    """The lines of one picture."""
    out = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True)
    report = LiveReport(out, lambda: (width, height), coloured=coloured)
    return [SEQUENCE.sub("", line).rstrip() for line in report.lines(standings)]


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


def test_what_stands_on_a_line() -> None:
    (line,) = drawn([standing(1)], width=80, height=24)
    assert line == f"task-1 {9 * '━'}╺{10 * '━'} 46.1% 29.5GiB/64.0GiB 20.0GiB/s 1.9s running"
    (line,) = drawn([standing(1)], width=80, height=24, coloured=False)
    assert line == f"task-1 {9 * '━'}{12 * ' '}46.1% 29.5GiB/64.0GiB 20.0GiB/s 1.9s running"
    (line,) = drawn([standing(1)._replace(stale=True)], width=80, height=24)
    assert line.endswith("no daemon")
    (line,) = drawn([Standing("new", "queued", {})], width=80, height=24, coloured=False)
    assert line.split() == ["new", "queued"]


def test_columns_are_as_wide_as_what_is_in_them() -> None:
    short, long = standing(1)._replace(name="a"), standing(2, "done", "longer")
    first, second = drawn([short, long], width=80, height=24)
    assert first.index("46.1%") == second.index("46.1%")
    assert first.endswith("1.9s running")
    assert second.endswith("5.0s done")


def test_an_encoding_without_such_signs(command: Command, memory: Path) -> None:
    words = command.words("run", "checksum", f"path={memory}/file", "name=sum")
    with Terminal(*words, env={"PYTHONIOENCODING": "ascii"}) as terminal:
        assert terminal.end() == 0
        assert f"sum {'#' * 20} 100.0% 64.0KiB/64.0KiB" in terminal.text


def test_lines_are_drawn_over_those_before() -> None:
    """And what is said in between stays above them."""
    out = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", newline="", write_through=True)
    report = LiveReport(out, lambda: (80, 24), coloured=False)
    report.show([standing(1), standing(2)])
    report.note("words")
    report.show([standing(1, "done"), standing(2)])
    report.close()
    out.seek(0)
    screen: list[str] = []
    at = 0
    for piece in re.split(r"(\n|\r|\x1b\[[0-9?]*[A-Za-z])", out.read()):
        match piece[-1:], piece:
            case "\n", _:
                at += 1
            case "A", _:
                at -= int(piece[2:-1])
            case "J", _:
                del screen[at + 1 :]
            case "", _:
                pass
            case _, "\r" | "\x1b[K" | "\x1b[?25l" | "\x1b[?25h":
                pass
            case _:
                screen[at:] = [piece, *screen[at + 1 :]]
    assert [line.split()[0] for line in screen] == ["words", "task-1", "task-2"]
    assert [line.split()[-1] for line in screen] == ["words", "done", "running"]
