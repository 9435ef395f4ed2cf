"""The digest of the copied data, from the same pass."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from ktaskfs.memory.digest import ALGORITHMS
from tests.operations.ranges.digests import digest_of
from tests.support.memory_files import HUGE, make_dirty, punch

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.runner import Place, Runner


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_the_digest_is_that_of_checksum(runner: Runner, place: Place, plain: Path, algorithm: str) -> None:
    """Through holes, over the edges of leaves, and with several threads."""
    punch(plain, HUGE + 4096, HUGE)
    path = place.directory / "file"
    make_dirty(path, 4 * HUGE)
    part = {"source": plain, "source_offset": 4096, "offset": HUGE + 8192, "length": 9 * HUGE + 5}
    plan = runner.prepare("copy", path=path, **part, digest=algorithm, chunk="1M", max_threads=2)
    copied = runner.result(plan)
    there = {"path": path, "offset": HUGE + 8192, "length": 9 * HUGE + 5}
    assert copied == runner.result(runner.prepare("checksum", **there, algorithm=algorithm))
    assert copied == digest_of(plain.read_bytes()[4096 : 4096 + 9 * HUGE + 5], algorithm)
