"""The benchmarks that boot a virtual machine of their own."""

from __future__ import annotations

import pytest

from tests.support.benchmarks import EMULATED, check_smoke


@pytest.mark.parametrize("name", EMULATED)
def test_smoke(root: None, name: str) -> None:
    check_smoke(name)
