"""``ktaskfs top``: the contents of the screen and the effects of its keys."""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import signal
import sys
from typing import TYPE_CHECKING, Any, Final

import pytest

from ktaskfs.cli.follow import Standing
from ktaskfs.cli.mounted import Mounted
from ktaskfs.cli.picture import Picture, holders, next_rate, next_threads, take
from ktaskfs.cli.top import Top
from tests.support.daemon import ROOT
from tests.support.poll import DEADLINE, until
from tests.support.shell import Outcome, run
from tests.support.slow import start_slow, stop
from tests.support.terminal import Terminal

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from pathlib import Path

    from textual.pilot import Pilot

    from tests.cli.conftest import Command

PAUSE: Final = 0.05
TRIES: Final = round(DEADLINE / PAUSE)


def figures(name: str, **changes: Any) -> dict[str, Any]:
    """Returns an object as in info/tasks.json."""
    given = {
        "name": name,
        "state": "running",
        "units": "bytes",
        "done": 29 << 30,
        "total": 64 << 30,
        "percent": 45.3,
        "speed": 1 << 30,
        "finish_usec": 35_000_000,
        "max_threads": 4,
        "threads": 4,
        "rate_max": None,
    }
    return given | changes


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A simulated mount of plain files, so that a test decides about its contents."""
    for directory in ("tasks/t0", "info"):
        (tmp_path / directory).mkdir(parents=True)
    (tmp_path / "tasks/control").touch()
    (tmp_path / "info/hugepages").write_text(
        "size  node  total  free  reserved  surplus\n2M    -     40     30    0         0\n"
        "2M    0     40     30    -         0\n"
    )
    (tmp_path / "tasks/t0/threads").write_text(
        "tid  node  cpu  state    chunks  done  busy_us  range\n"
        "1    0     0    running  3       4     5        -\n2    1     1    running  2       4     5        -\n"
        "3    1     -    idle     1       4     5        -\n"
    )
    put(tmp_path, [figures("t0")])
    return tmp_path


def put(place: Path, tasks: list[dict[str, Any]]) -> None:
    (place / "info/tasks.json").write_text(json.dumps(tasks))


def screen(app: Top) -> list[str]:
    """Returns the lines on the screen."""
    return ["".join(segment.text for segment in strip) for strip in app.screen._compositor.render_strips()]


async def sees(pilot: Pilot[None], app: Top, what: Callable[[list[str]], bool]) -> None:
    for _ in range(TRIES):
        await pilot.pause(PAUSE)
        if what(screen(app)):
            return
    raise AssertionError("\n".join(screen(app)))


def played(
    place: Path, scene: Callable[[Pilot[None], Top], Coroutine[Any, Any, None]], size: tuple[int, int] = (80, 24)
) -> None:
    """Runs the program on a screen of this size, with ``scene`` as its user."""

    async def play() -> None:
        app = Top(Mounted(str(place), 0))
        async with app.run_test(size=size, notifications=True) as pilot:
            await scene(pilot, app)

    asyncio.run(play())


def test_what_is_on_the_screen(place: Path) -> None:
    async def scene(pilot: Pilot[None], app: Top) -> None:
        await sees(pilot, app, lambda lines: "node 1: 1 running, 1 idle; 3 chunks" in "\n".join(lines))
        lines = screen(app)
        assert (len(lines), {len(line) for line in lines}) == (24, {80})
        assert lines[0].startswith(" ktaskfs  1 running  1.0GiB/s  /")
        row = next(line for line in lines if line.startswith("t0"))
        assert row.split() == ["t0", "████░░░░░", "45.3%", "29.0GiB/64.0GiB", "1.0GiB/s", "35.0s", "running"]
        assert any("node 0  2M  10/40 used  20.0MiB" in line for line in lines)
        assert lines[-1].split()[::2] == ["p", "r", "C", "+", "-", "]", "[", "m", "q"]

    played(place, scene)


def test_who_holds_huge_pages(place: Path) -> None:
    small = {"size": 2 << 20, "kind": "file", "used": 3, "reserved": 1, "uid": 0, "path": "/dev/hugepages/vm0"}
    small |= {"processes": [{"pid": 42, "name": "qemu", "uid": 0}], "more_processes": 0}
    large = {"size": 1 << 30, "kind": "memfd", "used": 1, "reserved": 0, "uid": None, "path": None, "processes": []}
    (place / "info/holders.json").write_text(json.dumps({"pools": [], "holdings": [small, large], "hung": []}))
    assert holders(Mounted(str(place))) == ["1 × 1G  memfd", "4 × 2M  vm0  qemu 42"]

    async def scene(pilot: Pilot[None], app: Top) -> None:
        await sees(pilot, app, lambda lines: any("4 × 2M  vm0  qemu 42" in line for line in lines))
        assert any("held by" in line for line in screen(app))
        assert any("node 0  2M  10/40 used" in line for line in screen(app))

    played(place, scene)
    (place / "info/holders.json").unlink()
    assert holders(Mounted(str(place))) == []


def test_a_thousand_tasks_and_the_cursor_stays_with_one(place: Path) -> None:
    put(place, [figures(f"t{n}") for n in range(1000)])

    async def scene(pilot: Pilot[None], app: Top) -> None:
        await sees(pilot, app, lambda lines: "1000 running" in lines[0])
        await pilot.press("ctrl+end")
        assert app.chosen is not None
        assert app.chosen.name == "t999"
        put(place, [figures("t999", percent=99.9), *(figures(f"t{n}", state="done") for n in range(999))])
        await sees(pilot, app, lambda lines: "999 done" in lines[0])
        assert (app.chosen.name, app.chosen.figures["percent"]) == ("t999", 99.9)
        put(place, [figures("other", state=None, units=None, done=None, total=None, percent=None, speed=None)])
        await sees(pilot, app, lambda lines: "1 unknown" in lines[0])
        assert app.chosen.name == "other"
        put(place, [])
        await sees(pilot, app, lambda lines: "no tasks" in lines[0])
        await pilot.press("p", "plus", "right_square_bracket")
        assert app.chosen is None

    played(place, scene)


@pytest.mark.parametrize("size", [(80, 24), (40, 12), (200, 60), (20, 5)])
def test_sizes(place: Path, size: tuple[int, int]) -> None:
    async def scene(pilot: Pilot[None], app: Top) -> None:
        await sees(pilot, app, lambda lines: any(line.startswith("t0") for line in lines))
        assert (len(screen(app)), len(screen(app)[0])) == (size[1], size[0])

    played(place, scene, size)


def test_keys_change_the_task_and_a_refusal_is_said(command: Command, memory: Path) -> None:
    mount = command.mount
    start_slow(mount, memory, "slow", rate="64K")

    async def scene(pilot: Pilot[None], app: Top) -> None:
        async def shows(what: Callable[[Standing], bool]) -> None:
            await sees(pilot, app, lambda _: app.chosen is not None and what(app.chosen))

        await shows(lambda task: task.state == "running")
        await pilot.press("p")
        await shows(lambda task: task.state == "paused")
        await pilot.press("p")
        await sees(pilot, app, lambda lines: any("pause does not fit" in line for line in lines))
        await pilot.press("r", "minus", "right_square_bracket")
        await shows(lambda task: (task.state, task.figures["rate_max"]) == ("running", 128 << 10))
        assert mount.read("tasks/slow/max_threads") == "1\n"
        await pilot.press("C")
        await shows(lambda task: task.state == "cancelled")
        await pilot.press("q")

    played(mount.path, scene)
    assert mount.read("tasks/slow/state") == "cancelled\n"


def test_a_daemon_that_dies_is_said_and_the_picture_stays(command: Command) -> None:
    mount = command.mount
    (mount.path / "tasks/empty").mkdir()

    async def scene(pilot: Pilot[None], app: Top) -> None:
        await sees(pilot, app, lambda lines: "1 new" in lines[0])
        mount.process.kill()
        mount.process.wait()
        await sees(pilot, app, lambda lines: "does not answer" in lines[0])
        assert any(line.startswith("empty") for line in screen(app))

    played(mount.path, scene)
    mount.kill()


@pytest.mark.parametrize("environment", ["TERM=screen", "TERM=screen NO_COLOR=1", "TERM=vt100"])
def test_in_tmux(command: Command, memory: Path, area: Path, environment: str) -> None:
    start_slow(command.mount, memory, "slow")
    tmux = ["tmux", "-S", str(area / "socket"), "-f", "/dev/null"]
    program = f"env {environment} LC_ALL=C.UTF-8 {shlex.join(command.words('top'))}; echo ended $?; exec cat"
    try:
        assert run(*tmux, "-u", "new-session", "-d", "-x", "80", "-y", "24", program, cwd=ROOT).status == 0
        until(lambda: "slow" in run(*tmux, "capture-pane", "-p").out, "it is on the screen")
        run(*tmux, "send-keys", "p")
        until(lambda: "1 paused" in run(*tmux, "capture-pane", "-p").out, "the key was heard")
        run(*tmux, "send-keys", "q")
        until(lambda: "ended 0" in run(*tmux, "capture-pane", "-p").out, "it has ended")
    finally:
        run(*tmux, "kill-server")
    stop(command.mount, "slow")


def test_without_textual_it_says_what_to_install(command: Command) -> None:
    script = "import sys; sys.modules['textual'] = None; from ktaskfs.cli.main import main; sys.exit(main())"
    outcome = run(sys.executable, "-c", script, *command.words("top")[3:], cwd=ROOT)
    assert (outcome.status, outcome.err.count("\n")) == (1, 1)
    assert outcome.err.endswith("pipx inject ktaskfs textual\n")


def test_no_mount(area: Path, command: Command) -> None:
    outcome = run(*command.words("top")[:4], "-m", str(area), cwd=ROOT)
    assert (outcome.status, outcome.err.count("\n")) == (1, 1)
    assert "no ktaskfs is mounted" in outcome.err


def test_steps_of_the_keys() -> None:
    task = Standing("t", "running", figures("t"))
    assert (next_threads(task, 1), next_threads(task, -9)) == (5, 1)
    assert next_rate(task, faster=True) == "max"
    assert next_rate(task, faster=False) == str(1 << 29)
    limited = Standing("t", "running", figures("t", rate_max=100))
    assert (next_rate(limited, faster=True), next_rate(limited, faster=False)) == ("200", "50")


def test_a_picture_counts_bytes_only(place: Path) -> None:
    put(place, [figures("a"), figures("b", units="pages"), figures("c", state="done"), figures("d", speed=None)])
    picture = take(Mounted(str(place)), "t0", Picture())
    assert picture.speed == 1 << 30
    assert picture.summary == "3 running, 1 done"
    assert picture.threads[0] == "node 0: 1 running; 3 chunks"
    assert take(Mounted(str(place)), "gone", Picture()).threads == []


def test_a_look_that_ends_after_the_screen_is_no_error(place: Path) -> None:
    """This happens when a user quits while the mount is slow."""
    mounted = Mounted(str(place), patience=0)
    before = take(mounted, None, Picture())

    async def look() -> None:
        app = Top(mounted)
        async with app.run_test() as pilot:
            await pilot.pause()
            await app.query_one("#tasks").remove()
            app.on_top_seen(Top.Seen(before))
            app.look()

    asyncio.run(look())


NEEDS: Final = "ktaskfs: ktaskfs top needs a terminal, and not a dumb one; ktaskfs ls and events print what it shows"


def test_it_needs_a_terminal(command: Command) -> None:
    """Without one it would write a screen into a file and wait for keys."""
    assert command("top") == Outcome(1, "", f"{NEEDS}\n")
    for term in ("dumb", ""):
        with Terminal(*command.words("top"), env={"TERM": term}, columns=200) as terminal:
            assert terminal.end() == 1
            assert terminal.raw == f"{NEEDS}\r\n"
    with Terminal("bash", "-c", f"{shlex.join(command.words('top'))} | head -1", columns=200) as terminal:
        assert terminal.end() == 0
        assert terminal.raw == f"{NEEDS}\r\n"


@pytest.mark.parametrize("ended_by", ["\x03", "SIGTERM"])
def test_control_c_and_sigterm_leave_the_terminal_as_it_was(command: Command, ended_by: str) -> None:
    script = f"stty -g; (echo pid $BASHPID.; exec {shlex.join(command.words('top'))}); echo ended $?; stty -g"
    with Terminal("bash", "--norc", "-c", script) as terminal:
        terminal.sees("pools of huge pages")
        if ended_by == "SIGTERM":
            os.kill(int(terminal.text.partition("pid ")[2].partition(".")[0]), signal.SIGTERM)
        else:
            terminal.type(ended_by)
        terminal.sees("ended")
        assert terminal.end() == 0
        lines = terminal.text.splitlines()
        assert f"ended {143 if ended_by == 'SIGTERM' else 0}" in lines[-2]
        assert lines[-1] == lines[0]
        assert terminal.raw.rindex("\x1b[?1049l") > terminal.raw.rindex("\x1b[?1049h")


def test_control_z_leaves_the_screen_until_the_shell_continues_it(command: Command) -> None:
    with Terminal("bash", "--norc", "-i") as terminal:
        terminal.type(f"{shlex.join(command.words('top'))}\n")
        terminal.sees("pools of huge pages")
        terminal.type("\x1a")
        terminal.sees("Stopped")
        assert terminal.raw.rindex("\x1b[?1049l") > terminal.raw.rindex("\x1b[?1049h")
        terminal.type("fg\n")
        until(lambda: terminal.raw.rindex("\x1b[?1049h") > terminal.raw.rindex("\x1b[?1049l"), "the screen is back")
        terminal.type("q")
        until(lambda: terminal.raw.rindex("\x1b[?1049l") > terminal.raw.rindex("\x1b[?1049h"), "the shell is back")
