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

from ktaskfs.cli.arguments import VERBS, parser

NAMES = ["run", "wait", "ls", "show", *VERBS, "set", "events", "doctor", "pool", "completion", "top", "mount"]
PROGRAM = Path(sys.executable).with_name("ktaskfs")
PARSED = "import sys; from ktaskfs.cli.arguments import parser; parser({}, 'mount').parse_args(['mount', '/x']); "


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
