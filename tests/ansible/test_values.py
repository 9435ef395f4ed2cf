"""Values of YAML as texts for the daemon, and comparison of values by their meaning."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.ansible.conftest import Utilities


@pytest.mark.parametrize(
    ("one", "other", "kind"),
    [
        ("64G", "68719476736", "size"),
        ("64GiB", "0x1000000000", "size"),
        ("1024k", "1M", "size|max"),
        ("max", "max", "size|max"),
        ("007", "7", "number"),
        ("0-3,8", "8,0,1,2,3", "cpulist"),
        ("/dev/./shm//a/", "/dev/shm/a", "path"),
        ("A55A", "a55a", "hex"),
        ("0xA55A", "a55a", "hex"),
        ("600", "0600", "mode"),
        ("0x7f00DEAD0000", "0x7f00dead0000", "address|all"),
        ("4096", "0x1000", "address|all"),
        ("yes", "yes", "word"),
    ],
)
def test_alike(utilities: Utilities, one: str, other: str, kind: str) -> None:
    assert utilities.values.alike(one, other, kind)


@pytest.mark.parametrize(
    ("one", "other", "kind"),
    [
        ("64G", "64M", "size"),
        ("1.5G", "1536M", "size"),
        ("max", "0", "number|max"),
        ("-", "0", "size"),
        ("0-3", "0-2", "cpulist"),
        ("-", "0", "cpulist"),
        ("/dev/shm/a", "/dev/shm/b", "path"),
        ("/dev/link/../a", "/dev/a", "path"),
        ("11", "0011", "hex"),
        ("4096", "0x4096", "address|all"),
        ("00", "0", "hex"),
        ("64G", "68719476736", "word"),
        ("64", "0100", "mode"),
    ],
)
def test_not_alike(utilities: Utilities, one: str, other: str, kind: str) -> None:
    assert not utilities.values.alike(one, other, kind)


@pytest.mark.parametrize(
    ("value", "kind", "text"),
    [
        (64, "size", "64"),
        (True, "0/1", "1"),
        ("false", "0/1", "0"),
        ("Yes", "0/1", "1"),
        ("yes", "word", "yes"),
        (0o600, "mode", "0600"),
        ("0600", "mode", "0600"),
        ([0, 1], "cpulist", "0,1"),
        ("caf\udce9", "path", "caf\udce9"),
    ],
)
def test_as_text(utilities: Utilities, value: Any, kind: str, text: str) -> None:
    assert utilities.values.as_text(value, kind) == text


def test_null_is_not_given(utilities: Utilities) -> None:
    assert utilities.values.given({"length": None, "undo": True, "none": False}, {"undo": "0/1"}) == {
        "undo": "1",
        "none": "0",
    }
