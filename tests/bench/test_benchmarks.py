"""Every benchmark runs, on tiny sizes; what it measures is nobody's business here."""

from __future__ import annotations

import re
import sys

import pytest

from tests.support.daemon import ROOT
from tests.support.leftovers import none_left
from tests.support.shell import run

SOURCES = [*(ROOT / "bench").glob("*.py"), *(ROOT / "bench").glob("*/__main__.py")]
NAMES = sorted(name for path in SOURCES for name in re.findall(r'^ *main\("(\w+)"', path.read_text(), re.MULTILINE))


@pytest.mark.parametrize("name", NAMES)
def test_smoke(root: None, name: str) -> None:
    with none_left():
        done = run(sys.executable, "-m", f"bench.{name}", "--smoke", cwd=ROOT)
    assert done.status == 0, done.err
    assert done.out.startswith("## ")
    assert "median" in done.out
