"""Names of files that would be commands to the terminal, in the output of the command."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import pytest

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
        assert not set("\x1b\x9b\x07") & set(said.replace("\x1b[?25h", "").replace("\x1b[?25l", ""))


def test_complaints_have_none(command: Command, odd: Path) -> None:
    (odd / f"{NAME}.tasks").write_text("nonsense\n")
    for words in (["run", "--files", str(odd)], ["kill", NAME], ["wait", NAME]):
        outcome = command(*words)
        assert outcome.status == 1
        assert SHOWN in outcome.err
        assert outcome.err.isascii()
        assert "\x1b" not in outcome.err
