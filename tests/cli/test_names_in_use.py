"""``ktaskfs run`` where a task of that name exists, or a file is in the way: what it advises."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

import pytest

from ktaskfs.cli.mounted import Mounted
from ktaskfs.cli.start import taken_name
from ktaskfs.errors import Refused
from tests.cli.conftest import Command
from tests.support.shell import Outcome, run
from tests.support.slow import start_slow, stop

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import MountMaker
    from tests.support.users import User

pytestmark = pytest.mark.usefixtures("patient")


def test_only_an_own_task_can_be_joined(
    mount_maker: MountMaker, memory: Path, two_users: tuple[User, User], public_root: Path
) -> None:
    command = Command(mount_maker("mode=0666"))
    words = ["run", "checksum", f"path={memory}/file", "name=theirs"]
    assert command(*words).status == 0
    refused = run(*command.words(*words), user=two_users[0], cwd=public_root)
    assert (refused.status, refused.err.splitlines()[0]) == (1, "ktaskfs: a task theirs exists: choose another name=")


def test_a_name_that_no_task_can_have(command: Command, memory: Path) -> None:
    for options in ([], ["--if-exists=rerun"], ["--plan"]):
        refused = command("run", *options, "checksum", f"path={memory}/file", "name=control")
        said = "ktaskfs: no task can have the name control"
        assert (refused.status, refused.err.splitlines()[0]) == (1, said)


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


@pytest.mark.parametrize("way", ["join", "resume"])
def test_a_task_that_did_less_is_another(command: Command, memory: Path, way: str) -> None:
    """The rest of the file is as it was: whoever asks for all of it must not hear that it is done."""
    part = ["clear", f"path={memory}/file", "name=part"]
    assert command("run", *part, "length=4K").status == 0
    refused = command("run", f"--if-exists={way}", *part)
    assert (refused.status, refused.err) == (1, "ktaskfs: the task part exists already, with length=4K\n")
    assert command("run", f"--if-exists={way}", *part, "offset=0", "length=4096").status == 0


def test_a_task_at_work_that_does_less_is_another(command: Command, memory: Path) -> None:
    start_slow(command.mount, memory, "slow")
    spec = ["path=" + str(memory / "slow-slow"), "name=slow"]
    refused = command("run", "--if-exists=rerun", "clear", *spec, "force=1")
    assert refused.err == "ktaskfs: the task slow exists already, with force=0\n"
    stop(command.mount, "slow")


def test_the_same_work_in_other_words(command: Command, memory: Path) -> None:
    spec = ["fill", f"path={memory}/file", "name=f"]
    assert command("run", *spec, "pattern=0xA55A", "nodes=0,0").status == 0
    assert command("run", "--if-exists=join", *spec, "pattern=a55A", "nodes=0-0").status == 0
    refused = command("run", "--if-exists=join", *spec, "pattern=00A55A", "nodes=0")
    assert refused.err == "ktaskfs: the task f exists already, with pattern=a55a\n"


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ('{"name": "c"}', "the task c exists already, with the operation clear"),
        ('{"op": "clear", "name": "c", "lenght": 1}', "clear has no parameter 'lenght'"),
        ('{"op": "clear", "path": "/x", "name": "c\\u0000"}', "name: 'c\\x00' is not a task name"),
        ('{"op": "clear", "path": "/x", "name": "\\ud800"}', "name: '\\ud800' is not a task name"),
        ('{"op": "clear", "path": "/x", "name": "../tasks/c"}', "name: '../tasks/c' is not a task name"),
        ("[" * 100_000, "cannot read the spec: "),
    ],
    ids=["no operation", "no parameter", "NUL", "surrogate", "path", "deep"],
)
def test_what_can_be_no_spec_is_refused_in_words(command: Command, memory: Path, spec: str, words: str) -> None:
    assert command("run", "clear", f"path={memory}/file", "name=c").status == 0
    refused = command("run", "--if-exists=join", "-", stdin=spec)
    assert refused.status == 1
    assert refused.err.startswith(f"ktaskfs: {words}")


@pytest.mark.parametrize(
    "spec",
    [
        "fill path='/x",
        "fill path=/é length=1\n  fill  'path=/x'  name=\"a pattern=5",
        "fill path=/x\\",
        '"',
        '{"op": "fill", }',
        '{"op": "fill",\n "path": /x}\nfree path=/x',
    ],
)
@pytest.mark.parametrize("option", ["--if-exists=join", "--plan"])
def test_what_cannot_be_split_has_the_words_and_the_caret_of_the_daemon(
    command: Command, spec: str, option: str
) -> None:
    refused = command("run", option, "-", stdin=spec)
    assert refused == command("run", "-", stdin=spec)
    assert "^" in refused.err.splitlines()[-1]


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


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_a_refused_resume_leaves_the_others_followed(command: Command, memory: Path, options: list[str]) -> None:
    """The others have been started already: whoever reads the status must not take them for refused, too."""
    start_slow(command.mount, memory, "old")
    stop(command.mount, "old")
    (memory / "slow-old").unlink()
    old = f"clear path={memory}/slow-old name=old"
    both = f"{old}\nchecksum path={memory}/file name=new"
    outcome = command("run", *options, "--if-exists=resume", "-", stdin=both)
    assert outcome.status == 1
    said = [line for line in (outcome.out if options else outcome.err).splitlines() if "slow-old" in line]
    assert len(said) == 1
    assert ("crc32" in outcome.out, command.mount.read("tasks/new/state")) == (True, "done\n")
    alone = command("run", "--if-exists=resume", old)
    assert (alone.status, alone.out, "slow-old" in alone.err) == (1, "", True)


def test_a_resume_of_another_file_says_so(command: Command, memory: Path) -> None:
    """Its errno, ESTALE, is also that of a file of a daemon that has died."""
    file = start_slow(command.mount, memory, "old")
    stop(command.mount, "old")
    file.rename(memory / "moved")
    file.write_bytes(b"")
    words = f"{file} is not the file of the task's start: start a new task"
    assert command("resume", "old") == Outcome(1, "", f"ktaskfs: old: {words}\n")
    assert words in command("run", "--if-exists=resume", f"clear path={file} name=old").err


@pytest.mark.parametrize("way", ["join", "resume", "rerun"])
@pytest.mark.parametrize("state", ["done", "at work"])
def test_nobody_joins_the_task_of_another_user(
    mount_maker: MountMaker, memory: Path, two_users: tuple[User, User], way: str, state: str
) -> None:
    """It may have worked on another file, if that user's root directory is another one."""
    command, user = Command(mount_maker("mode=0666")), two_users[0]
    (memory / "file").chmod(0o666)
    spec = f"clear path={memory}/file name=scrub"
    slowly = " rate_max=1 chunk=4K" if state == "at work" else ""
    assert command.mount.write("tasks/control", spec + slowly, user=user) == (0, None)
    if state == "done":
        command.mount.cat("tasks/scrub/wait", user=user)
    outcome = command("run", "--detach", "--if-exists", way, spec)
    assert (outcome.status, outcome.out) == (1, "")
    assert "scrub exists" in outcome.err
    command.mount.write("tasks/control", "cancel", user=user)
    command.mount.cat("tasks/scrub/wait", user=user)
