from __future__ import annotations

import contextlib
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.fleet.hosts import three_hosts
from tests.slurm.cluster import NEEDED, PAGE, PAGES, Cluster
from tests.support.hugepages import reserved

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.users import User

HUGETLBFS = Path("/dev/hugepages")


@pytest.fixture(scope="module")
def cluster(root: None, two_users: tuple[User, User]) -> Iterator[Cluster]:
    """Slurm, and the pages for all of its nodes."""
    missing = [name for name in NEEDED if shutil.which(name) is None]
    if missing:
        pytest.skip(f"not installed: {' '.join(missing)}")
    there = HUGETLBFS.exists()
    HUGETLBFS.mkdir(exist_ok=True)  # each host mounts its own on it
    try:
        with (
            reserved(PAGE, 3 * PAGES),
            tempfile.TemporaryDirectory(prefix="kt-slurm-") as path,
            three_hosts(Path(path)) as fleet,
        ):
            yield Cluster(fleet, two_users[0])
    finally:
        if not there:
            with contextlib.suppress(OSError):  # somebody else has files in it by now
                HUGETLBFS.rmdir()
