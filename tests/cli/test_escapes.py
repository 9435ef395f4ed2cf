"""Names of files that would be commands to the terminal, or that the locale has no characters for."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

import pytest

from tests.support.daemon import ROOT
from tests.support.shell import run
from tests.support.terminal import Terminal

if TYPE_CHECKING:
    from pathlib import Path

    from tests.cli.conftest import Command

NAME: Final = "red\x1b[31m\x9b1m\x07"
SHOWN: Final = r"red\033[31m\302\2331m\007"


@pytest.fixture
def odd(memory: Path) -> Path:
    """A directory with a file of that name."""
    (memory / "odd").mkdir()
    (memory / "odd" / NAME).write_bytes(b"x")
    return memory / "odd"


def said_by(*words: str) -> str:
    """What a program writes on a terminal, without colours of its own."""
    with Terminal(*words, env={"NO_COLOR": "1"}) as terminal:
        terminal.end()
        return terminal.raw


def test_a_list_of_digests_has_them_but_not_on_a_terminal(command: Command, odd: Path) -> None:
    words = ("run", "checksum", f"path={odd}", "name=sums")
    assert f"  {NAME}\n" in command(*words).out  # as sha256sum -c needs it
    assert f"\n{command.mount.read('tasks/sums/result')}" in command("show", "sums").out
    again = (*words, "--if-exists=replace")
    for said in (said_by(*command.words(*again)), said_by(*command.words("show", "sums"))):
        assert f"  {SHOWN}\r\n" in said
        assert not set("\x1b\x9b\x07") & set(said)


def test_complaints_have_none(command: Command, odd: Path) -> None:
    (odd / f"{NAME}.tasks").write_text("nonsense\n")
    for words in (["run", "--files", str(odd)], ["kill", NAME], ["wait", NAME]):
        outcome = command(*words)
        assert outcome.status == 1
        assert SHOWN in outcome.err
        assert outcome.err.isascii()
        assert "\x1b" not in outcome.err


ASCII: Final = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
"""Variables with which Python takes every byte of a name above 127 for a wrong one."""


def test_names_keep_their_bytes_in_any_locale(command: Command, memory: Path) -> None:
    (memory / "odd").mkdir()
    (memory / "odd/ü").write_bytes(b"x")
    (memory / "ü.tasks").write_text(f"checksum path={memory}/odd/ü algorithm=sha256sum name=one\n")
    for words in (["checksum", f"path={memory}/odd", "name=all"], ["--files", f"{memory}/ü.tasks"]):
        outcome = run(*command.words("run", "--quiet", *words), env={**os.environ, **ASCII}, cwd=ROOT)
        assert (outcome.status, outcome.err) == (0, "")
        assert outcome.out.endswith("ü\n")
    shown = run(*command.words("show", "all"), env={**os.environ, **ASCII}, cwd=ROOT)
    assert shown.out.endswith(command.mount.read("tasks/all/result"))
    refused = run(*command.words("run", "clear", f"path={memory}/ö", "x=1"), env={**os.environ, **ASCII}, cwd=ROOT)
    assert "clear has no parameter 'x'" in refused.err
