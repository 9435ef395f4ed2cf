"""The notes of the results are those of the benchmarks: whoever changes the one changes the other."""

from __future__ import annotations

import ast
import re
from typing import TYPE_CHECKING

import pytest

from bench.summary import Results
from tests.support.daemon import ROOT

if TYPE_CHECKING:
    from pathlib import Path

RESULTS = [each for each in sorted((ROOT / "bench/results").glob("*.json")) if each.name != "model.json"]
SHORT = 12
"""Letters of a text that says nothing by itself."""


class Texts(ast.NodeVisitor):
    """Collects the texts of a source as patterns; what a formatted text fills in may be anything."""

    def __init__(self) -> None:
        self.found: list[str] = []

    def visit_JoinedStr(self, node: ast.JoinedStr) -> None:
        parts = [each.value if isinstance(each, ast.Constant) else None for each in node.values]
        if sum(len(str(part)) for part in parts if part is not None) >= SHORT:
            pattern = "".join(".+?" if part is None else re.escape(str(part)) for part in parts)
            self.found.append(re.sub(r"\.\Z", r".(?!\\S)", pattern))  # a point in a number is no end

    def visit_Constant(self, node: ast.Constant) -> None:
        if isinstance(node.value, str) and len(node.value) >= SHORT:
            self.found.append(re.escape(node.value))


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_the_benchmark_has_the_words_of_each_note(path: Path) -> None:
    texts = Texts()
    texts.visit(ast.parse((ROOT / f"bench/{path.stem}.py").read_text()))
    for section in Results.read(path).sections:
        rest = section.note
        for pattern in sorted(texts.found, key=len, reverse=True):
            rest = re.sub(pattern, "", rest)
        assert rest.strip() == "", section.title


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_the_page_is_that_of_the_figures(path: Path) -> None:
    assert path.with_suffix(".md").read_text() == Results.read(path).page()
