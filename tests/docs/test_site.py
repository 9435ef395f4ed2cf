"""``make docs``: every page has its way into the site, and no link is dead."""

from __future__ import annotations

import shutil
import sys
from typing import TYPE_CHECKING

import pytest

from tests.support.daemon import ROOT
from tests.support.documents import PAGES
from tests.support.poll import DEADLINE
from tests.support.shell import Outcome, run

if TYPE_CHECKING:
    from pathlib import Path

NOT_IN_THE_SITE = {".github"}


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of the documents."""
    root = tmp_path / "copy"
    (root / "bench/results").mkdir(parents=True)
    shutil.copytree(ROOT / "docs", root / "docs")
    measured = [*ROOT.glob("bench/*.md"), *ROOT.glob("bench/results/*.md")]
    for path in [*ROOT.glob("*.md"), *ROOT.glob("ansible/**/*.md"), ROOT / "mkdocs.yml", ROOT / "LICENSE", *measured]:
        (root / path.relative_to(ROOT)).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, root / path.relative_to(ROOT))
    return root


def built(root: Path) -> Outcome:
    return run(sys.executable, str(root / "docs/site.py"), cwd=root, timeout=4 * DEADLINE)


def test_it_is_built_without_a_warning_and_has_every_page(copy: Path) -> None:
    assert built(copy) == Outcome(0, "", "")
    site = copy / "build/site"
    for page in PAGES:
        inside = page.relative_to(ROOT)
        if inside.parts[0] not in NOT_IN_THE_SITE:
            place = inside.with_name("index.html") if inside.name == "README.md" else inside.with_suffix(".html")
            assert (site / place).exists(), inside
    assert "https://" not in (site / "index.html").read_text().split("<body")[0], "nothing is loaded from elsewhere"


def test_a_dead_link_and_a_dead_anchor_are_errors(copy: Path) -> None:
    with (copy / "docs/how-to/scrub.md").open("a") as page:
        page.write("[one](nowhere.md) [two](resume.md#nowhere)\n")
    done = built(copy)
    assert done.status != 0
    assert "'nowhere.md'" in done.err
    assert "'#nowhere'" in done.err
