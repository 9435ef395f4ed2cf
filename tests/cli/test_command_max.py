"""The command imports nothing of the daemon's, so each of them states the longest command."""

from __future__ import annotations

from ktaskfs.cli import mounted
from ktaskfs.vfs import COMMAND_MAX


def test_the_longest_command_is_the_daemons() -> None:
    assert mounted.COMMAND_MAX == COMMAND_MAX
