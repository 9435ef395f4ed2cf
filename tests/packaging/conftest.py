"""The packages, each built once for all tests."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from tests.packaging.build import Built, build
from tests.packaging.chroot import RELEASES, Release
from tests.support.packages import Unavailable

if TYPE_CHECKING:
    from collections.abc import Iterator
    from concurrent.futures import Future


@pytest.fixture(scope="session")
def builds(root: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[Release, Future[Built]]]:
    """The packages of all releases, which are built at the same time."""
    with ThreadPoolExecutor(len(RELEASES)) as executor:
        yield {each: executor.submit(build, each, tmp_path_factory.mktemp(each.name)) for each in RELEASES}


@pytest.fixture(scope="session", params=RELEASES, ids=lambda release: release.name)
def built(request: pytest.FixtureRequest, builds: dict[Release, Future[Built]]) -> Built:
    """The package of each release; skips where it cannot be had."""
    try:
        return builds[request.param].result()
    except Unavailable as error:
        pytest.skip(str(error))
