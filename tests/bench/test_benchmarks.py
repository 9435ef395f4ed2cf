"""Every benchmark runs on tiny sizes, but those that tests/numa has."""

from __future__ import annotations

import pytest

from tests.support.benchmarks import BENCHMARKS, check_smoke


@pytest.mark.parametrize("name", BENCHMARKS)
def test_smoke(root: None, name: str) -> None:
    check_smoke(name)
