"""The parser of the command line: what it leaves out, and how wide its help is."""

from __future__ import annotations

import fcntl
import os
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest

from ktaskfs.cli.arguments import VERBS, parse, parser

NAMES = ["run", "wait", "ls", "show", *VERBS, "set", "events", "doctor", "pool", "completion", "top", "mount"]
PROGRAM = Path(sys.executable).with_name("ktaskfs")
PARSED = "import sys; from ktaskfs.cli.arguments import parser; parser({}, 'mount').parse_args(['mount', '/x']); "
HUGE = "9" * 400


def help_of(command: str | None, name: str, capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as ended:
        parser({}, command).parse_args([name, "--help"])
    assert ended.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("name", NAMES)
def test_alone_a_command_is_the_same(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert help_of(name, name, capsys) == help_of(None, name, capsys)


@pytest.mark.parametrize(("command", "known"), [("mount", ["mount"]), (None, NAMES), ("x", NAMES), ("--help", NAMES)])
def test_others_are_left_out_only_for_a_command(
    command: str | None, known: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        parser({}, command).parse_args(["nonsense"])
    error = capsys.readouterr().err
    assert [name for name in NAMES if re.search(rf"\b{name}\b", error)] == known


@pytest.mark.parametrize(
    ("line", "words", "detach"),
    [
        ("copy a=1 b=2", ["copy", "a=1", "b=2"], False),
        ("--detach copy a=1 b=2", ["copy", "a=1", "b=2"], True),
        ("copy --detach a=1 b=2", ["copy", "a=1", "b=2"], True),
        ("copy a=1 --det --timeout 5 b=2", ["copy", "a=1", "b=2"], True),
        ("copy a=1 --detach --timeout=5 b=2 -m /x c=3", ["copy", "a=1", "b=2", "c=3"], True),
        ("copy a=1 b=2 --detach", ["copy", "a=1", "b=2"], True),
        ("--detach -", ["-"], True),
        ("a --detach - -- -b", ["a", "-", "-b"], True),
        ("copy -- --detach", ["copy", "--detach"], False),
        ("copy --detach a=1 -- --detach -m", ["copy", "a=1", "--detach", "-m"], True),
        ("--detach -- -x a=1", ["-x", "a=1"], True),
        ("copy -- a=1 -- b=2", ["copy", "a=1", "--", "b=2"], False),
    ],
)
def test_options_stand_anywhere(line: str, words: list[str], *, detach: bool) -> None:
    given = parse(["run", *line.split()], {})
    assert (given.spec, given.detach) == (words, detach)


def test_options_stand_between_names() -> None:
    for command in ("wait", "ls", "show", "events", "set", *VERBS):
        given = parse([command, "a", "--json", "b=1", "-m", "/x", "c"], {})
        assert (given.name, given.json, given.mount) == (["a", "b=1", "c"], True, "/x")
    assert parse(["ls", "--json"], {}).name == []


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (
            "run copy --detach a=1 --bogus=1 b=2",
            "unrecognized arguments: --bogus=1; write parameters without dashes: bogus=1",
        ),
        ("set vm0 --nice=5", "unrecognized arguments: --nice=5; write parameters without dashes: nice=5"),
        ("ls --x=1", "unrecognized arguments: --x=1"),
        ("run copy -z --detach a=1 -- --odd", "unrecognized arguments: -z"),
        ("run --detach", "the following arguments are required: SPEC"),
        ("run copy --files a=1 --detach", "argument --detach: not allowed with argument --files"),
        ("mount /a -o x /b", "unrecognized arguments: /b"),
        ("doctor all", "unrecognized arguments: all"),
        ("completion", "the following arguments are required: bash|zsh|fish"),
        ("completion --odd bash", "unrecognized arguments: --odd"),
        ("mount --fd 99999999999 /a", "argument --fd: '99999999999' is not a number from 0 to 2147483647"),
        ("run a --hosts b --timeout 0", "argument --timeout: '0' is not a number from 1 to 2147483647"),
        (f"run a --hosts b --timeout {HUGE}", f"argument --timeout: '{HUGE}' is not a number from 1 to 2147483647"),
    ],
)
def test_a_wrong_command_line(line: str, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse(line.split(), {})
    assert ended.value.code == 2
    said = capsys.readouterr().err
    command = line.split(maxsplit=1)[0]
    assert said.startswith(f"usage: ktaskfs {command} ")
    assert said.endswith(f"ktaskfs {command}: error: {words}\n")


def test_a_mount_waits_for_no_module_of_compression() -> None:
    """argparse alone imports shutil, and with it three of them, which the daemon and its workers would keep."""
    command = [sys.executable, "-c", PARSED + "print('argparse' in sys.modules, 'shutil' in sys.modules)"]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "True False\n"


@pytest.mark.parametrize(
    ("given", "width"), [("50", 50), ("100", 100), ("", 80), ("0", 80), ("-1", 80), ("many", 80), ("9" * 5000, 80)]
)
def test_the_help_is_as_wide_as_the_variable_says(given: str, width: int) -> None:
    shown = subprocess.run(
        [PROGRAM, "wait", "--help"], env=os.environ | {"COLUMNS": given}, capture_output=True, text=True, check=True
    ).stdout
    assert width - 12 < max(map(len, shown.splitlines())) <= width - 2


def test_the_help_is_as_wide_as_the_terminal() -> None:
    here, there = os.openpty()
    fcntl.ioctl(there, termios.TIOCSWINSZ, struct.pack("4H", 24, 60, 0, 0))
    environment = {name: value for name, value in os.environ.items() if name != "COLUMNS"}
    subprocess.run([PROGRAM, "set", "--help"], env=environment, stdout=there, check=True)
    os.close(there)
    shown = os.read(here, 65536).decode().splitlines()
    os.close(here)
    assert 48 < max(map(len, shown)) <= 58


@pytest.mark.parametrize(
    ("line", "mount"),
    [
        ("-m /x run copy a=1", "/x"),
        ("-m/x run copy a=1", "/x"),
        ("--mount /x run copy a=1", "/x"),
        ("--mount=/x run copy a=1", "/x"),
        ("-m /x run -m /y copy a=1", "/y"),
        ("run -m /y copy a=1", "/y"),
        ("run copy a=1", "/run/ktaskfs"),
    ],
)
def test_the_mount_may_stand_before_the_command(line: str, mount: str) -> None:
    given = parse(line.split(), {})
    assert (given.command, given.spec, given.mount) == ("run", ["copy", "a=1"], mount)


@pytest.mark.parametrize("line", ["-m", "-m /x", "-m /x nonsense", "-m /x mount /y", "--mount=/x"])
def test_the_mount_alone_is_no_command(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse(line.split(), {})
    assert (ended.value.code, capsys.readouterr().out) == (2, "")
