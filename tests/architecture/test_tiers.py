"""Every test has a tier: CONTRIBUTING.md says what each is for."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from tests.support.daemon import ROOT
from tests.support.tiers import FAST, LONGEST, MACHINE, MOUNT, TESTS, TIERS, tier_of, turn_of

FILES = sorted(TESTS.rglob("test_*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(TESTS)))
def test_every_file_has_a_tier(path: Path) -> None:
    assert tier_of(path) is not None, f"name the folder of {path} in TIERS of tests/support/tiers.py"


def test_every_named_folder_has_tests() -> None:
    for folder in TIERS:
        assert list((TESTS / folder).rglob("test_*.py")), folder


def test_the_nearest_folder_counts() -> None:
    assert tier_of(TESTS / "operations/base/test_x.py") == FAST
    assert tier_of(TESTS / "operations/base/test_x.py", needs_root=True) == MOUNT
    assert tier_of(TESTS / "operations/ranges/test_x.py") == MOUNT
    assert tier_of(TESTS / "numa/guest/test_x.py", needs_root=True) == MACHINE
    assert tier_of(TESTS / "test_x.py") == FAST
    assert tier_of(TESTS / "nowhere/test_x.py") is None
    assert tier_of(Path("/tmp/test_x.py")) is None


def test_several_processes_begin_with_what_takes_long() -> None:
    folders = [LONGEST, "systemd", "mount", "ktask"]
    mixed = ["ktask", "systemd", LONGEST, "mount"]
    assert sorted(mixed, key=lambda folder: turn_of(TESTS / folder / "test_x.py")) == folders
    assert turn_of(TESTS / "ktask/test_x.py") < turn_of(Path("/tmp/test_x.py"))
    near = [turn_of(TESTS / path) for path in ("mount/test_a.py", "attacks/test_b.py", "mount/test_c.py")]
    assert near == sorted(near)
    assert turn_of(TESTS / "systemd/test_a.py") == turn_of(TESTS / "systemd/test_b.py")


def test_the_markers_are_declared() -> None:
    options = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"]["ini_options"]
    assert {marker.partition(":")[0] for marker in options["markers"]} == {FAST, MOUNT, MACHINE} == set(TIERS.values())


def test_this_test_is_fast(request: pytest.FixtureRequest) -> None:
    assert [mark.name for mark in request.node.iter_markers()] == [FAST]


def test_a_fixture_that_needs_root_lifts_a_test(request: pytest.FixtureRequest, root: None) -> None:
    assert [mark.name for mark in request.node.iter_markers()] == [MOUNT]
