"""Running the benchmarks on tiny sizes."""

from __future__ import annotations

import re
import sys
from typing import Final

from tests.support.daemon import ROOT
from tests.support.leftovers import none_left
from tests.support.poll import DEADLINE
from tests.support.shell import run


def _names(*, emulated: bool) -> list[str]:
    found = []
    for path in [*(ROOT / "bench").glob("*.py"), *(ROOT / "bench").glob("*/__main__.py")]:
        text = path.read_text()
        if ("from tests.numa import" in text) == emulated:
            found += re.findall(r'^ *main\("(\w+)"', text, re.MULTILINE)
    return sorted(found)


BENCHMARKS: Final = _names(emulated=False)
EMULATED: Final = _names(emulated=True)
"""The benchmarks that boot a virtual machine if this one lacks a second node."""


def check_smoke(name: str) -> None:
    """The benchmark runs and prints a table. Its figures are not checked here."""
    with none_left():
        done = run(sys.executable, "-m", f"bench.{name}", "--smoke", cwd=ROOT, timeout=10 * DEADLINE)
    assert done.status == 0, done.err
    check_report(done.out)


def check_report(text: str) -> None:
    """The output of a benchmark is a table with medians."""
    assert text.startswith("# ")
    assert "median" in text
