"""The bounds on the daemon's memory add up to what is promised."""

from __future__ import annotations

import re

import pytest

from ktaskfs.control import limits
from ktaskfs.fuse.session import MAX_REQUESTS
from ktaskfs.vfs.patience import OF_ONE_MAX
from tests.support.daemon import ROOT

PROMISED = 200
"""MiB, in docs/explanation/security.md."""
REQUEST_KIB = 10
"""Measured: 4608 requests that wait for their turn take 45 MiB."""


def test_the_sum_of_all_bounds_is_below_the_promise() -> None:
    assert limits.__doc__ is not None
    assert sum(int(each) for each in re.findall(r"^ +(\d+)  ", limits.__doc__, re.MULTILINE)) < PROMISED


def test_the_bound_on_requests_is_that_of_the_session() -> None:
    assert f"  {-(-MAX_REQUESTS * REQUEST_KIB // 1024)}  {MAX_REQUESTS} requests" in str(limits.__doc__)


@pytest.mark.parametrize("page", ["docs/explanation/security.md", "docs/abi/README.md"])
def test_the_pages_have_the_bound_on_waiting_reads(page: str) -> None:
    assert f"more than {OF_ONE_MAX} reads" in (ROOT / page).read_text()
