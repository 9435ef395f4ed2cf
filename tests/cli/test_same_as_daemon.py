"""The command imports nothing of the daemon's, so each of them states the longest command, and what has no file."""

from __future__ import annotations

from ktaskfs.cli import listing, mounted
from ktaskfs.control import shown_task
from ktaskfs.vfs import COMMAND_MAX


def test_the_longest_command_is_the_daemons() -> None:
    assert mounted.COMMAND_MAX == COMMAND_MAX


def test_the_parameters_without_a_file_are_the_daemons() -> None:
    assert listing.NO_FILE == shown_task.OF_THE_SPEC
