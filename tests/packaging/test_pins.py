"""The pinned versions, of the Debian package and of the developers' tools, are what pyproject.toml asks for."""

from __future__ import annotations

import re
import tomllib
from typing import Final

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.support.daemon import ROOT

PINS: Final = ROOT / "packaging/debian/python"
PIN: Final = re.compile(r"^(\S+)==(\S+) \\\n((?:    --hash=sha256:[0-9a-f]{64}(?: \\)?\n)+)", re.MULTILINE)


def pins(name: str) -> dict[str, str]:
    """The version of each project in a file."""
    return {canonicalize_name(project): version for project, version, _ in PIN.findall((PINS / name).read_text())}


def test_every_dependency_is_pinned_to_a_version_that_will_do() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    found = pins("run.txt")
    for text in (*project["dependencies"], *project["optional-dependencies"]["top"]):
        requirement = Requirement(text)
        assert requirement.specifier.contains(found[canonicalize_name(requirement.name)]), text


def test_every_tool_of_developers_is_pinned_to_a_version_that_will_do() -> None:
    lines = (ROOT / "scripts/versions.txt").read_text().splitlines()
    found = dict(line.split("==") for line in lines if not line.startswith("#"))
    versions = {canonicalize_name(name): version for name, version in found.items()}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    optional = project["optional-dependencies"]
    for text in (
        *project["dependencies"],
        *(each for extra in ("dev", "docs", "fleet", "top") for each in optional[extra]),
    ):
        requirement = Requirement(text)
        if requirement.name != "ktaskfs":
            assert requirement.specifier.contains(versions[canonicalize_name(requirement.name)]), text


@pytest.mark.parametrize("name", ["build.txt", "run.txt"])
def test_every_pin_has_digests(name: str) -> None:
    lines = [line for line in (PINS / name).read_text().splitlines() if not line.startswith(("#", "    --hash"))]
    assert len(lines) == len(pins(name)) > 0
