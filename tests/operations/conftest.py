"""Every test of an operation runs it in this process: tests/support/runner.py."""

from tests.operations.contract import ground, texts
from tests.support.hands import answers
from tests.support.runner import any_place, place, plain, pool, pool_2m, runner

__all__ = ["answers", "any_place", "ground", "place", "plain", "pool", "pool_2m", "runner", "texts"]
