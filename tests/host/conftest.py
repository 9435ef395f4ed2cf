"""Fixtures for tests of the machine; some run operations in this process: tests/support/runner.py."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from ktaskfs.host.kernel import Kernel
from tests.support.runner import runner

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["runner"]


@pytest.fixture
def kernel() -> Iterator[Kernel]:
    kernel = Kernel.open()
    yield kernel
    kernel.close()
