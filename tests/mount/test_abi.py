"""docs/abi against the live mount: every file has an entry, every entry a file, and the modes are right."""

from __future__ import annotations

import re
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from ktaskfs.control.task_directory import STATUS_FILES
from ktaskfs.control.verbs import VERBS
from ktaskfs.operations.base.registry import find_operations
from ktaskfs.tasks.tunables import TUNABLES
from ktaskfs.version import VERSION
from tests.support.daemon import ROOT

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import MountMaker
    from tests.support.daemon import Mount

ABI = ROOT / "docs" / "abi"
FIELDS = ["What", "Mode", "Since", "Description", "Format"]
CONTAINERS = {"debug", "operations", "info"}
"""Directories without an entry of their own, whose files have entries."""
VIEW = "users/0/"
"""Where the link ``tasks`` leads root."""


@dataclass(frozen=True)
class Entry:
    """One entry of docs/abi."""

    what: str
    fields: dict[str, str]

    def names(self, path: str, parameters: set[str]) -> bool:
        """Whether this entry describes ``path``; ``<parameter>`` stands only for declared ones."""
        literal = re.escape(self.what.rstrip("/"))
        pattern = literal.replace("<task>", "[^/]+").replace("<operation>", "[^/]+").replace("<uid>", "[0-9]+")
        pattern = pattern.replace("<parameter>", f"(?:{'|'.join(map(re.escape, sorted(parameters)))})")
        return re.fullmatch(pattern, path) is not None


def entries() -> list[Entry]:
    found = []
    for file in sorted(ABI.iterdir()):
        if file.suffix == ".md":
            continue
        for block in re.split(r"\n(?=What:)", file.read_text()):
            parts = re.split(r"^([A-Z]\w+):", block, flags=re.MULTILINE)
            fields = {name: text.strip() for name, text in zip(parts[1::2], parts[2::2], strict=True)}
            assert list(fields) == FIELDS, f"{file.name}: {block}"
            found.append(Entry(fields["What"], fields))
    return found


@pytest.fixture
def living(mounted: Mount, memory: Path) -> Mount:
    """A mount with a task of every operation, one that ended and one without any."""
    (memory / "f").write_bytes(b"x" * 8192)
    mounted.shell(
        f"echo 'clear path={memory}/f name=ended' > tasks/control && mkdir tasks/empty && cat tasks/ended/wait"
    )
    for name in find_operations():
        mounted.shell('mkdir "tasks/$1" && echo "$1" > "tasks/$1/op"', name)
    return mounted


def test_every_file_has_an_entry_and_every_entry_a_file(living: Mount) -> None:
    known = entries()
    parameters = {
        line.split()[0]
        for name in find_operations()
        for line in living.read(f"operations/{name}/parameters").splitlines()[1:]
    }
    used = set()
    for path in sorted(living.path.rglob("*")):
        name = str(path.relative_to(living.path))
        if name.startswith(f"{VIEW}tasks/"):
            name = name.removeprefix(VIEW)
        matching = [each for each in known if each.names(name, parameters)]
        fewest = min((each.what.count("<") for each in matching), default=0)  # the most specific entry
        matching = [each for each in matching if each.what.count("<") == fewest]
        if name in CONTAINERS or (path.is_dir() and path.parent.name == "operations"):
            assert matching == []
            continue
        assert len(matching) == 1, f"{name} has {len(matching)} entries in docs/abi"
        used.add(matching[0].what)
        assert matching[0].what.endswith("/") == (path.is_dir() and not path.is_symlink())
        assert f"{stat.S_IMODE(path.lstat().st_mode):04o}" == matching[0].fields["Mode"][:4], name
    assert used == {each.what for each in known}


def test_modes_that_follow_the_options(mount_maker: MountMaker) -> None:
    mount = mount_maker("mode=0646,uid=1234,gid=5678,hidepid=1")
    mount.shell("mkdir tasks/mine")
    modes = {
        name: (stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid)
        for name in ("tasks/control", "events", "tasks", "tasks/mine", "metrics")
        for status in [(mount.path / name).stat()]
    }
    assert modes == {
        "tasks/control": (0o646, 1234, 5678),
        "events": (0o444, 1234, 5678),
        "tasks": (0o1757, 1234, 5678),
        "tasks/mine": (0o500, 0, 0),
        "metrics": (0o444, 0, 0),
    }


def test_entries_say_what_the_declarations_say() -> None:
    texts = {each.what: each.fields for each in entries()}
    for tunable in TUNABLES:
        values = (
            f"One of {', '.join(tunable.words)}"
            if tunable.words
            else f"A whole number, {tunable.least} to {tunable.most}"
        )
        expected = f"{values}; default {tunable.format(tunable.default)}."
        assert texts[f"debug/{tunable.file}"]["Format"] == expected
    for verb in VERBS:
        assert verb in texts["tasks/<task>/control"]["Description"]
    for file in STATUS_FILES:
        assert f"tasks/<task>/{file.name}" in texts
    for fields in texts.values():
        assert all(fields.values())
        assert tuple(map(int, fields["Since"].split("."))) <= tuple(map(int, VERSION.split(".")))


def test_stat_and_status_have_the_keys_that_are_promised(living: Mount) -> None:
    promised = next(each for each in entries() if each.what == "tasks/<task>/stat").fields["Format"].split(":", 1)[1]
    keys = re.sub(r"\([^)]*\)", "", promised).replace(".", "").split(",")
    assert [key.strip() for key in keys] == [line.split()[0] for line in living.read("tasks/ended/stat").splitlines()]


def test_the_manual_in_the_mount_names_everything_at_the_top(living: Mount) -> None:
    manual = living.read("README")
    assert len(manual.splitlines()) <= 48, "more than one screen"
    for path in living.path.iterdir():
        if path.name not in ("README", "version"):
            assert path.name in manual
    for file in STATUS_FILES:
        assert file.name in manual
    for verb in VERBS:
        assert verb in manual
    for name in find_operations():
        assert name in manual
