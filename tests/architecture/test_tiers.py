"""Every test has a tier; CONTRIBUTING.md describes the tiers."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from tests.support.daemon import ROOT
from tests.support.tiers import BESIDE, FAST, MACHINE, MOUNT, TESTS, TIERS, process_of, tier_of

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


def test_those_that_wait_for_machines_have_a_process_of_their_own() -> None:
    assert {process_of(TESTS / folder / "test_x.py") for folder in ("systemd", "numa", "fleet", *BESIDE)} == {MACHINE}
    assert {process_of(TESTS / folder / "test_x.py") for folder in ("mount", "ktask", "cli/fleet")} == {MOUNT}
    assert process_of(Path("/tmp/test_x.py")) == MOUNT


def test_the_markers_are_declared() -> None:
    options = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"]["ini_options"]
    assert {marker.partition(":")[0] for marker in options["markers"]} == {FAST, MOUNT, MACHINE} == set(TIERS.values())


def test_this_test_is_fast(request: pytest.FixtureRequest) -> None:
    assert [mark.name for mark in request.node.iter_markers()] == [FAST]


def test_a_fixture_that_needs_root_lifts_a_test(request: pytest.FixtureRequest, root: None) -> None:
    assert [mark.name for mark in request.node.iter_markers()] == [MOUNT]
