"""The script draws the pictures of README again, with running tasks."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING
from xml.etree import ElementTree

from tests.support.daemon import ROOT
from tests.support.poll import DEADLINE
from tests.support.shell import run

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.daemon import Mount

NAMES = ("guest", "database", "weights")


def words(picture: Path) -> str:
    """Returns all text of an SVG. Raises ParseError if the file is no SVG."""
    return " ".join(ElementTree.fromstring(picture.read_text()).itertext()).replace("\xa0", " ")


def test_they_are_drawn_from_tasks_at_work(mounted: Mount, tmp_path: Path) -> None:
    script = str(ROOT / "docs/pictures.py")
    done = run(sys.executable, script, str(mounted.path), str(tmp_path), cwd=ROOT, timeout=4 * DEADLINE)
    assert done.status == 0, done
    for name in ("run", "top"):
        drawn, shown = words(tmp_path / f"{name}.svg"), words(ROOT / f"docs/pictures/{name}.svg")
        for each in (*NAMES, "running", f"ktaskfs {name}"):
            assert each in drawn
            assert each in shown, "the picture of README"
    for name in NAMES:
        assert mounted.read(f"tasks/{name}/state") in ("cancelled\n", "done\n"), "none is left at work"
