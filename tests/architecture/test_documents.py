"""The documents' statements about the tests are true."""

from __future__ import annotations

import argparse
import re
import runpy
from typing import TYPE_CHECKING

import pytest

from ktaskfs.cli.arguments import parser
from ktaskfs.operations.base.parameters import TaskParameters
from ktaskfs.operations.base.registry import find_operations
from tests.support.daemon import ROOT
from tests.support.documents import PAGES

if TYPE_CHECKING:
    from pathlib import Path

NAMED = re.compile(r"`(tests/[\w/]+\.py)(?:::(\w+))?`")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_tests_that_it_names_exist(page: Path) -> None:
    for file, name in NAMED.findall(page.read_text()):
        if "NAME" not in file:  # stands for any
            source = (ROOT / file).read_text()
            assert not name or re.search(rf"^(async )?def {name}\(", source, re.MULTILINE), f"{file}::{name}"


def test_tests_are_named_in_the_way_that_is_looked_for() -> None:
    assert sum(len(NAMED.findall(page.read_text())) for page in PAGES) > 60


def commands() -> dict[str, argparse.ArgumentParser]:
    """The commands of ``ktaskfs`` that ktaskfs(1) describes."""
    actions = parser({})._actions
    found = next(each for each in actions if isinstance(each, argparse._SubParsersAction)).choices
    return {name: each for name, each in found.items() if name != "mount"}


@pytest.mark.parametrize("name", commands())
def test_the_manual_page_has_each_option_of_a_command(name: str) -> None:
    page = (ROOT / "docs/man/ktaskfs.1.in").read_text().replace("\\-", "-")
    options = {option for action in commands()[name]._actions for option in action.option_strings}
    missing = {option for option in options - {"-h", "--help"} if not re.search(rf"(?<![\w-]){option}(?![\w-])", page)}
    assert missing == set()
    assert re.search(rf"\b{name}\b", page)


@pytest.mark.parametrize("name", commands())
def test_the_help_of_a_command_says_what_each_option_is(name: str) -> None:
    for action in commands()[name]._actions:
        assert action.help, action
        assert action.option_strings == [] or action.option_strings[-1] in commands()[name].format_help()


@pytest.fixture(scope="module")
def manual() -> dict[str, str]:
    """The manual pages by their names."""
    pages = runpy.run_path(str(ROOT / "docs/man/generate.py"))["pages"]()
    return {name: text.replace("\\-", "-") for name, text in pages.items()}


def words(text: str) -> list[str]:
    """The words of a text in roff or Markdown, without markup and links."""
    plain = re.sub(r"<!--.*?-->|^\.\w+|\\f.|\\%|\]\([^)]*\)", " ", text, flags=re.MULTILINE | re.DOTALL)
    return re.findall(r"\w+", plain.replace("\\(aq", "'"))


def test_the_manual_page_has_each_parameter_of_an_operation(manual: dict[str, str]) -> None:
    page = manual["ktaskfs-operations.7"]
    of_every = {each.name for each in TaskParameters.declared}
    for name, operation in find_operations().items():
        part = page.partition(f'.SS "{name}"\n')[2].partition("\n.S")[0]
        own = {each.name for meaning in operation.meanings for each in meaning.declared}
        assert set(re.findall(r"^\.BR (\w+) ", part, re.MULTILINE)) >= own - of_every
    common = page.partition('.SH "PARAMETERS OF EVERY OPERATION"\n')[2].partition("\n.SH")[0]
    assert set(re.findall(r"^\.BR (\w+) ", common, re.MULTILINE)) == of_every


@pytest.mark.parametrize("name", find_operations())
def test_the_manual_page_has_the_result_of_an_operation_and_what_it_refuses(manual: dict[str, str], name: str) -> None:
    part = manual["ktaskfs-operations.7"].partition(f'.SS "{name}"\n')[2].partition("\n.S")[0]
    by_hand = (ROOT / f"docs/reference/operations/{name}.md").read_text().partition("## Result\n")[2]
    result, heading, refused = by_hand.partition("## Refused\n")
    assert heading
    own = re.sub(r"See\s+also\s+\[errors\s+of\s+every\s+operation\]\S+\s*\Z", "", refused)
    assert " ".join(["Result", *words(result), "Refused", *words(own)]) in " ".join(words(part))


def test_the_manual_page_has_what_all_operations_have_in_common(manual: dict[str, str]) -> None:
    common = (ROOT / "docs/reference/README.md").read_text().partition("## Results of a directory\n")[2]
    names = [name.replace("`", "") for name in re.findall(r"^\| (.+?) \|", common, re.MULTILINE)]
    headings = ["line", "errno"]
    assert set(headings) < set(names)
    entries = re.findall(r"^\.TP\n\.B (.+)$", manual["ktaskfs-operations.7"], re.MULTILINE)
    assert entries == [name for name in names if name not in headings]


def test_the_manual_pages_lead_to_each_other(manual: dict[str, str]) -> None:
    names = {page: "{0} ({2})".format(*page.rpartition(".")) for page in manual}
    for page, text in manual.items():
        seen = set(re.findall(r"^\.BR (\S+ \(\d\)),?$", text.partition("\n.SH SEE ALSO\n")[2], re.MULTILINE))
        assert {each for each in seen if "ktaskfs" in each} <= set(names.values()) - {names[page]}
        assert "ktaskfs-operations (7)" in seen | {names[page]}


def test_every_mark_in_a_manual_page_is_replaced(manual: dict[str, str]) -> None:
    assert re.findall(r"@[A-Z_]+@", "\n".join(manual.values())) == []
