from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.systemd.machine import Machine, booted

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="package")
def machine(root: None) -> Iterator[Machine]:
    """A machine just booted, for all the tests here."""
    with booted() as machine:
        yield machine
