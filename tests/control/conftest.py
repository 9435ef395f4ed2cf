"""Fixtures for all tests of the control files."""

from __future__ import annotations

import pytest

from ktaskfs.control import callers
from tests.support.poll import DEADLINE


@pytest.fixture(autouse=True)
def time_to_look(monkeypatch: pytest.MonkeyPatch) -> None:
    """A request waits for the examination of its process on any slow machine, unless a test sets another time."""
    monkeypatch.setattr(callers, "PATIENCE", DEADLINE)
