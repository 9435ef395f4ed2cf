from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from ktaskfs.host.kernel import Kernel

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def kernel() -> Iterator[Kernel]:
    kernel = Kernel.open()
    yield kernel
    kernel.close()
