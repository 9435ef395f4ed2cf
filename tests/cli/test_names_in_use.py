"""``ktaskfs run`` where a task of that name exists, or a file is in the way: what it advises."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

import pytest

from ktaskfs.cli.mounted import Mounted
from ktaskfs.cli.start import taken_name
from ktaskfs.errors import Refused
from tests.cli.conftest import Command
from tests.support.shell import run

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import MountMaker
    from tests.support.users import User


def test_only_an_own_task_can_be_joined(
    mount_maker: MountMaker, memory: Path, two_users: tuple[User, User], public_root: Path
) -> None:
    command = Command(mount_maker("mode=0666"))
    words = ["run", "checksum", f"path={memory}/file", "name=theirs"]
    assert command(*words).status == 0
    refused = run(*command.words(*words), user=two_users[0], cwd=public_root)
    assert (refused.status, refused.err.splitlines()[0]) == (1, "ktaskfs: a task theirs exists: choose another name=")


def test_a_file_in_the_way_cannot_be_joined(command: Command, memory: Path) -> None:
    out = memory / "list"
    out.touch()
    words = ("run", "checksum", f"path={memory}", "name=listed")
    said = f"ktaskfs: {out} exists already; out must be a new file"
    assert command(*words, f"out={out}").err.splitlines()[0] == said
    for first in ("plan=1", "replace=1"):  # a task of the name is there, but it would make way
        assert command(*words, first).status == 0
        again = ["replace=1"] if first == "replace=1" else []
        assert command(*words, f"out={out}", *again).err.splitlines()[0] == said


def test_a_task_in_the_way_is_found_whatever_the_message_says(command: Command, memory: Path) -> None:
    """Messages are for people: another version of the daemon may have other words."""
    words = ["checksum", f"path={memory}/file", "name=listed"]
    assert command("run", *words).status == 0
    mounted = Mounted(str(command.mount.path))
    with pytest.raises(Refused) as refused:
        mounted.start(" ".join(words))
    assert refused.value.errno == errno.EEXIST
    for spec, taken in (
        (" ".join(words), "listed"),
        (f"free path=/none\n{' '.join(words)}", "listed"),
        ('{"op": "free", "name": "listed"}', "listed"),
        (f"{' '.join(words)} replace=1", None),
        ("free path=/none name=other", None),
        ("free path=/none", None),
    ):
        assert taken_name(mounted, spec) == taken
