"""Tests of ``ktaskfs/memory`` run operations in this process: tests/support/runner.py."""

from tests.support.runner import any_place, place, plain, pool, pool_2m, runner

__all__ = ["any_place", "place", "plain", "pool", "pool_2m", "runner"]
