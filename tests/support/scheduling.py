"""Selects the process of pytest-xdist that runs a test."""

from __future__ import annotations

from xdist.scheduler import LoadScopeScheduling

from tests.support.tiers import process_of


class ByProcess(LoadScopeScheduling):  # type: ignore[misc]  # pytest-xdist has no types
    """All tests with the same result of ``process_of`` run in one process, in their order."""

    def _split_scope(self, nodeid: str) -> str:
        return process_of(self.config.rootpath / nodeid.partition("::")[0])
