"""Running operations in this process on real files of memory."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import pytest

from ktaskfs.errors import KtaskfsError
from ktaskfs.host.kernel import Kernel
from ktaskfs.ktask import Job, Outcome, TaskError
from ktaskfs.operations.base.parameters import parse_parameters
from ktaskfs.operations.base.registry import find_operations
from tests.support import filesystems, hugepages
from tests.support.memory_files import HUGE, content

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from ktaskfs.operations.base.operation import SpecWord
    from ktaskfs.operations.base.plan import Plan
    from ktaskfs.span import Node

POOL_PAGES: Final = {2 << 20: 64, 1 << 30: 2}
"""Pages that a test may use, of the sizes known here."""
OTHER_POOL_PAGES: Final = 4

SIZE: Final = 18 * HUGE
"""Bytes of the file ``plain``."""


@dataclass(frozen=True)
class Runner:
    """Prepares and runs operations as the worker does, without its process."""

    kernel: Kernel
    operations: Mapping[str, SpecWord]

    def prepare(self, operation: str, remaining: Sequence[Node] | None = None, /, **texts: object) -> Plan:
        """The plan for a spec; the values are written as in a spec. What follows an @ in the name says the family."""
        found = self.operations[operation.partition("@")[0]]
        parameters = parse_parameters(found.parameters, {key: str(value) for key, value in texts.items()})
        meant, own = found.meant(parameters)
        return meant.plan(self.kernel, own, remaining)

    def refused(self, operation: str, remaining: Sequence[Node] | None = None, /, **texts: object) -> KtaskfsError:
        """Why there is no plan for a spec; no descriptor may be left open. With plan=1 it is refused just so."""
        before = os.listdir("/proc/self/fd")
        with pytest.raises(KtaskfsError) as caught:
            self.prepare(operation, remaining, **texts)
        if remaining is None:
            with pytest.raises(KtaskfsError) as told:
                self.prepare(operation, **texts, plan=1)
            assert (told.value.errno, type(told.value)) == (caught.value.errno, type(caught.value)), told.value
        assert os.listdir("/proc/self/fd") == before
        return caught.value

    def work(self, plan: Plan, *, threads: int = 2, **changes: Any) -> Outcome:
        """Run a plan to its end, with ``changes`` to its Control."""
        try:
            outcome = Job(plan.nodes, dataclasses.replace(plan.control, max_threads=threads, **changes)).run()
        except TaskError as error:
            plan.finish(error.outcome)
            raise
        plan.finish(outcome)
        return outcome

    def failure(self, plan: Plan, **changes: Any) -> KtaskfsError:
        """As ``work``, for the error of the chunk that fails."""
        with pytest.raises(TaskError) as caught:
            self.work(plan, **changes)
        assert isinstance(caught.value.error, KtaskfsError)
        return caught.value.error

    def result(self, plan: Plan, *, threads: int = 2) -> str:
        """As ``work``, for what stands in ``result`` afterwards."""
        results: list[str] = []

        def finish(outcome: Outcome) -> str:
            results.append(plan.finish(outcome))
            return results[0]

        self.work(plan._replace(finish=finish), threads=threads)
        return results[0]

    def run(self, operation: str, remaining: Sequence[Node] | None = None, /, **texts: object) -> Outcome:
        """Prepare and work, in chunks of the least size."""
        plan = self.prepare(operation, remaining, **texts)
        return self.work(plan, max_chunk_size=plan.control.min_chunk_size)


def not_begun(plan: Plan) -> Outcome:
    """The outcome of a job before it begins, to finish a plan whose functions a test calls itself."""
    return Job(plan.nodes, plan.control).outcome()


@pytest.fixture(scope="session")
def runner() -> Iterator[Runner]:
    kernel = Kernel.open()
    yield Runner(kernel, find_operations())
    kernel.close()


@pytest.fixture
def pool(page_size: int) -> Iterator[hugepages.TestPool]:
    """Huge pages of the size that ``hugetlbfs`` has in this test."""
    with hugepages.reserved(page_size, POOL_PAGES.get(page_size, OTHER_POOL_PAGES)) as pool:
        yield pool


@pytest.fixture
def pool_2m() -> Iterator[hugepages.TestPool]:
    """Huge pages of 2 MiB, for memfds."""
    with hugepages.reserved(2 << 20, 32) as pool:
        yield pool


@dataclass(frozen=True)
class Place:
    """A directory on a filesystem of memory, and the allocation unit of its files."""

    directory: Path
    unit: int


SMALLEST: Final = filesystems.page_sizes()[:1]


def _places(sizes: Sequence[int]) -> list[Any]:
    kinds = [("hugetlbfs", size) for size in sizes] + [("huge=never", 4096), ("huge=always", 4096)]
    return [pytest.param(each, id=f"{each[0]}-{each[1] >> 20}M" if each[1] > 4096 else each[0]) for each in kinds]


@pytest.fixture(params=_places(SMALLEST))
def place(request: pytest.FixtureRequest, area: Path) -> Iterator[Place]:
    """hugetlbfs of the smallest page size with pages to use, and tmpfs of 256 MiB with and without huge pages."""
    with _place(request.param, area) as place:
        yield place


@pytest.fixture(params=_places(filesystems.page_sizes()))
def any_place(request: pytest.FixtureRequest, area: Path) -> Iterator[Place]:
    """As ``place``, and hugetlbfs of every other page size too."""
    with _place(request.param, area) as place:
        yield place


@contextlib.contextmanager
def _place(param: tuple[str, int], area: Path) -> Iterator[Place]:
    if os.geteuid() != 0:
        pytest.skip("only root can mount")
    kind, unit = param
    with contextlib.ExitStack() as stack:
        if kind == "hugetlbfs":
            stack.enter_context(hugepages.reserved(unit, POOL_PAGES.get(unit, OTHER_POOL_PAGES)))
            mount = filesystems.hugetlbfs(area / "place", unit)
        else:
            mount = filesystems.tmpfs(area / "place", 256 << 20, f"mode=1777,{kind}")
        yield Place(stack.enter_context(mount), unit)


@pytest.fixture
def plain(disk: Path) -> Path:
    """A file of an ordinary filesystem."""
    (disk / "plain").write_bytes(content(SIZE))
    return disk / "plain"
