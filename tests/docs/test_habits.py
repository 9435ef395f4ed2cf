"""The files about the project: their names exist, and the changes begin with this version."""

from __future__ import annotations

import re

import pytest
import yaml

from ktaskfs.version import VERSION
from tests.support.daemon import ROOT
from tests.support.shell import run

WORKFLOW = ROOT / ".github/workflows/ci.yml"
FILES = sorted([*ROOT.glob(".github/**/*.yml"), ROOT / ".pre-commit-config.yaml", ROOT / "mkdocs.yml"])


@pytest.mark.parametrize("name", [str(path.relative_to(ROOT)) for path in FILES])
def test_they_are_yaml(name: str) -> None:
    assert isinstance(yaml.safe_load((ROOT / name).read_text()), dict)


def test_the_matrix_calls_what_there_is() -> None:
    jobs = yaml.safe_load(WORKFLOW.read_text())["jobs"]
    commands = [step["run"] for job in jobs.values() for step in job["steps"] if "run" in step]
    made = [words for each in commands for words in re.findall(r"^(?:\w+=\S+ (?:\w+\) )?)?make ([\w -]+)$", each)]
    targets = {target for words in made for target in words.split()}
    assert targets >= {"docs", "test-fast"}
    for target in targets:
        done = run("make", "--dry-run", "--no-print-directory", target, cwd=ROOT)
        assert (done.status, done.err) == (0, ""), target
    assert any(".ci/run" in each for each in commands)


def test_hooks_run_tools_of_the_project() -> None:
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    assert {each["id"] for each in hooks} >= {"ruff", "ruff-format", "mypy"}
    for each in hooks:
        assert (ROOT / each["entry"].split()[0]).exists(), each


def test_the_changes_begin_with_this_version() -> None:
    versions = re.findall(r"^## \[(\d+\.\d+\.\d+)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert versions[0] == VERSION
    assert versions == sorted(versions, key=lambda text: [int(part) for part in text.split(".")], reverse=True)


def test_each_rule_that_is_left_out_has_a_reason() -> None:
    listed = re.search(r"(?ms)^ignore = \[\n(.*?)^\]", (ROOT / "pyproject.toml").read_text())
    assert listed is not None
    for line in listed[1].splitlines():
        assert re.fullmatch(r'    "[A-Z0-9]+", +# .+', line), line
