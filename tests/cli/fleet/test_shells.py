"""The line that a host's login shell gets, in each shell that a user may have there."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest

from ktaskfs.cli.fleet.watch import quoted
from tests.support.packages import Unavailable, cache, unpacked
from tests.support.shell import Outcome, run

if TYPE_CHECKING:
    from pathlib import Path

WORDS = [
    "",
    "plain=1",
    "a b",
    "it's",
    'a"b',
    "a\\b",
    "a\\\\b\\'c\\",
    "here!now !!",
    "$HOME `id` $(id) %1 ~ ^x^y^",
    "*?[a]{b,c}",
    '{"op":"copy","source":"/a \\"b\\" \\\\c"}',
]


def program(shell: str) -> str:
    """Returns the path of a shell, from Debian's package if it is not installed."""
    found = shutil.which(shell)
    if found is not None:
        return found
    try:
        with cache():
            place: Path = unpacked(shell)
    except Unavailable as error:
        pytest.skip(str(error))
    return str(next(each for each in (place / "bin" / shell, place / "usr/bin" / shell) if each.exists()))


@pytest.mark.parametrize("shell", ["sh", "bash", "dash", "zsh", "fish", "tcsh"])
def test_the_words_arrive_unchanged(shell: str, tmp_path: Path) -> None:
    command = f"/usr/bin/printf '<%s>\\n' {' '.join(map(quoted, WORDS))}"
    outcome = run(program(shell), "-c", command, env={"HOME": str(tmp_path)})
    assert outcome == Outcome(0, "".join(f"<{each}>\n" for each in WORDS), "")
