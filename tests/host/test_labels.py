"""How labels are read; that a process takes one over is tested where a security module is at work (tests/numa)."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from ktaskfs.errors import NotPermitted
from ktaskfs.host.labels import APPARMOR, OTHER, Label, NewLabel, read_label

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("text", "restrictions"),
    [
        ("unconfined", set()),
        ("firefox (unconfined)", set()),
        ("/usr/bin/man (enforce)", {"/usr/bin/man"}),
        ("a name (complain)", {"a name"}),
        ("one (more) (kill)", {"one (more)"}),
        ("one//&two (mixed)", {"one", "two"}),
        ("lxd//&:lxd-c1:unconfined (enforce)", {"lxd"}),
        (":lxd-c1:unconfined", set()),
        (":lxd-c1:unconfined//&one (-)", {"one"}),
        ("one//&unconfined (mixed)", {"one"}),
        ("outer//inner (enforce)", {"outer//inner"}),
    ],
)
def test_what_of_a_profile_restricts(text: str, restrictions: set[str]) -> None:
    assert Label(APPARMOR, text).restrictions == restrictions


@pytest.mark.parametrize(
    ("text", "inside"),
    [
        ("one (enforce)", {"one"}),
        ("one//&two (enforce)", {"one", "two"}),
        (":space:one (enforce)", {"one"}),
        ("one//&:space:two//&three (enforce)", {"two", "three"}),
        ("one//&:space:two//&:space//more:three (mixed)", {"three"}),
        ("lxd//&:lxd-c1:unconfined (enforce)", set()),
    ],
)
def test_what_a_process_sees_of_its_own_profile(text: str, inside: set[str]) -> None:
    assert Label(APPARMOR, text).inside == inside


@pytest.mark.parametrize(
    ("text", "restricts"),
    [
        ("unconfined_u:unconfined_r:unconfined_t:s0-s0:c0.c1023", False),
        ("system_u:system_r:unconfined_service_t:s0", False),
        ("system_u:system_r:container_t:s0:c1,c2", True),
        ("staff_u:staff_r:staff_t", True),
        ("unconfined_u:unconfined_r:not_unconfined_t:s0", True),
        ("kernel", True),
        ("_", True),
    ],
)
def test_which_context_restricts(text: str, restricts: bool) -> None:
    assert bool(Label(OTHER, text).restrictions) == restricts


def test_what_is_written_has_no_mode() -> None:
    label = Label(APPARMOR, "one//&:space:two (mixed)")
    assert (label.request, str(label)) == (b"changeprofile one//&:space:two", "AppArmor profile one//&:space:two")
    label = Label(OTHER, "staff_u:staff_r:staff_t")
    assert (label.request, str(label)) == (b"staff_u:staff_r:staff_t", "security context staff_u:staff_r:staff_t")
    assert str(Label(APPARMOR, "\x1b[31m\n (enforce)")) == "AppArmor profile ?[31m?"


@pytest.mark.parametrize(
    ("files", "found"),
    [
        ({APPARMOR: "one (enforce)\n", OTHER: "one (enforce)\n"}, Label(APPARMOR, "one (enforce)")),
        ({OTHER: "a:b:c_t:s0\0"}, Label(OTHER, "a:b:c_t:s0")),
        ({APPARMOR: "unconfined\n", OTHER: "unconfined\n"}, None),
        ({}, None),
    ],
)
def test_the_file_of_the_active_module_is_read(tmp_path: Path, files: dict[str, str], found: Label | None) -> None:
    for name, text in files.items():
        (tmp_path / "attr" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "attr" / name).write_text(text)
    process = os.open(tmp_path, os.O_PATH)
    try:
        assert read_label(process) == found
    finally:
        os.close(process)


@pytest.mark.parametrize(("module", "name"), [(APPARMOR, "AppArmor profile"), (OTHER, "security context")])
def test_a_label_that_cannot_be_taken_over_is_named(module: str, name: str) -> None:
    before = set(os.listdir("/proc/self/fd"))
    with pytest.raises(NotPermitted) as caught:
        NewLabel.open(Label(module, "no_u:no_r:such_t")).take()
    assert caught.value.errname == "EACCES"
    assert caught.value.message.startswith(f"the worker cannot take over your {name} no_u:no_r:such_t: ")
    assert "label=ignore" in caught.value.message
    assert set(os.listdir("/proc/self/fd")) == before
