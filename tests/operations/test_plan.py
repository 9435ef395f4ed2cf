"""plan=1 of every operation: the answer of a start, and nothing touched."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from tests.operations.contract import OPERATIONS, RANGES, declares, descriptors, every, state

if TYPE_CHECKING:
    from tests.support.runner import Place, Runner

MAKERS: Final = [name for name in RANGES if OPERATIONS[name].creates]
"""Operations that create the file if it is missing."""


def traces(directory: Path) -> dict[str, tuple[int, ...]]:
    """The stat(2) of everything, except the times of access."""
    found = {str(path): path.lstat() for path in (directory, *directory.rglob("*"))}
    return {
        path: (status.st_size, status.st_blocks, status.st_nlink, status.st_mtime_ns, status.st_ctime_ns)
        for path, status in found.items()
    }


def told(runner: Runner, name: str, texts: dict[str, str]) -> dict[str, str]:
    """The result of a plan."""
    plan = runner.prepare(name, **texts, plan=1)
    assert not plan.nodes
    return dict(line.split(" ", 1) for line in runner.result(plan).splitlines())


@every
def test_a_plan_says_what_there_is_to_do_and_touches_nothing(
    runner: Runner, texts: dict[str, str], ground: Path, name: str
) -> None:
    work = runner.prepare(name, **texts)
    work.abort()
    before = descriptors(), state(ground, name), traces(ground)
    facts = told(runner, name, texts)
    assert (descriptors(), state(ground, name), traces(ground)) == before
    assert (facts["operation"], facts["units"]) == (name.partition("@")[0], str(OPERATIONS[name].units))
    assert int(facts["total"]) == sum(node.size for node in work.nodes)


def set_aside(place: Place) -> str:
    """Huge pages of the pool that are reserved."""
    pool = Path(f"/sys/kernel/mm/hugepages/hugepages-{place.unit >> 10}kB/resv_hugepages")
    return pool.read_text() if pool.exists() else ""


@pytest.mark.parametrize("name", MAKERS)
def test_a_plan_of_a_file_that_is_not_there_or_too_short(
    runner: Runner, texts: dict[str, str], place: Place, name: str
) -> None:
    """It is neither made nor made longer, and no page is set aside: a start afterwards finds all as it was."""
    short = place.directory / "short"
    runner.run("fallocate", path=short, length=place.unit)
    size = 4 * place.unit
    if declares(name, "source"):
        (place.directory.parent / "source").write_bytes(b"x" * size)
        texts = texts | {"source": str(place.directory.parent / "source")}
    pages = set_aside(place)
    for path, creates in ((place.directory / "new\n", True), (short, False)):
        before = descriptors(), traces(place.directory)
        facts = told(runner, name, texts | {"path": str(path), "length": str(size)})
        assert (descriptors(), traces(place.directory), set_aside(place)) == (*before, pages)
        assert facts.get("creates") == (f"{place.directory}/new\\012" if creates else None)
        assert (facts["total"], facts["extends_to"]) == (str(size), str(size))
        if "allocates" in facts:
            assert facts["allocates"] == str(size if creates else size - place.unit)
        runner.run(name, **texts | {"path": str(path), "length": str(size)})
        assert path.stat().st_size == size
        path.unlink()
