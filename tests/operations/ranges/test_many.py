"""``free``, ``clear``, ``fill`` and ``survey`` of many files: a directory, or a pattern."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from typing import TYPE_CHECKING, Any, Final

import pytest

from ktaskfs.errors import Finding, InvalidValue, NotSupported, TargetError
from ktaskfs.host.target import Target, open_target
from ktaskfs.operations.base.parameters import parse_parameters
from ktaskfs.operations.ranges import _many, free
from ktaskfs.operations.ranges._overwrite import _Overwriter
from ktaskfs.span import Node
from tests.support import filesystems
from tests.support.holding import used
from tests.support.memory_files import HUGE, allocated, is_all, make_dirty
from tests.support.runner import SMALLEST, Place

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from ktaskfs.host.kernel import Kernel
    from ktaskfs.host.mapping import Mapping
    from tests.support.hugepages import TestPool
    from tests.support.runner import Runner

NAMES: Final = ("rtemap_0", "rtemap_1", "deeper/rtemap_2", "other")
smallest = pytest.mark.parametrize("page_size", SMALLEST, indirect=True)


def files_in(place: Place) -> list[Path]:
    """One file of each name, of one to four units; the last one has nothing but holes."""
    unit = max(place.unit, HUGE)
    (place.directory / "deeper").mkdir()
    with contextlib.suppress(OSError):  # hugetlbfs has no links
        (place.directory / "rtemap_link").symlink_to(place.directory / "other")
    (place.directory / "empty").touch()
    paths = [place.directory / name for name in NAMES]
    for number, path in enumerate(paths, start=1):
        if number < 4:
            make_dirty(path, number * unit)
        else:
            path.touch()
            os.truncate(path, number * unit)
    return paths


def is_huge(place: Place) -> bool:
    """Whether the directory is a hugetlbfs."""
    return place.unit >= HUGE


def counts(result: str) -> dict[str, int]:
    """The lines of two words."""
    return {words[0]: int(words[1]) for line in result.splitlines() if len(words := line.split()) == 2}


@pytest.mark.parametrize("operation", ["clear", "free", "survey"])
@pytest.mark.parametrize("name", ["empty", "[empty]*"])
def test_an_empty_directory_has_a_page_size(
    runner: Runner, hugetlbfs: Path, page_size: int, operation: str, name: str
) -> None:
    directory = hugetlbfs / name
    directory.mkdir()
    assert f"page_size {page_size}\n" in runner.result(runner.prepare(operation, path=directory))


@smallest
@pytest.mark.parametrize("pattern", ["", "*"], ids=["directory", "pattern"])
def test_a_file_with_two_names(runner: Runner, pool: TestPool, hugetlbfs: Path, pattern: str) -> None:
    """Its pages count once; to return them, both names must go."""
    file = hugetlbfs / "one"
    runner.run("fallocate", path=file, length=2 * pool.page_size)
    (hugetlbfs / "two").hardlink_to(file)
    result = runner.result(runner.prepare("survey", path=hugetlbfs / pattern))
    assert "\npresent 2\n" in result
    assert result.startswith("files 1\n")
    runner.run("free", path=hugetlbfs / pattern, unlink=1)
    assert list(hugetlbfs.iterdir()) == []


@pytest.mark.parametrize("chunk", ["2M", "1G"])
def test_all_files_of_a_directory(runner: Runner, place: Place, chunk: str) -> None:
    """Only huge pages: /dev/shm has semaphores and locks that nobody holds open."""
    paths = files_in(place)
    if not is_huge(place):
        for operation in ("clear", "free", "fill"):
            more = {"pattern": "5a"} if operation == "fill" else {}
            assert runner.refused(operation, path=place.directory, **more).errno == errno.EISDIR
        return
    plan = runner.prepare("clear", path=place.directory, chunk=chunk)
    assert sum(node.size for node in plan.nodes) == 10 * max(place.unit, HUGE)
    assert counts(runner.result(plan)) == {"files": 5, "gone": 0, "page_size": place.unit}
    assert all(is_all(0, path, 0, path.stat().st_size) for path in paths)
    assert [allocated(path) > 0 for path in paths] == [True, True, True, False]
    result = runner.result(runner.prepare("free", path=place.directory, chunk=chunk))
    assert counts(result)["files"] == 5
    assert [allocated(path) for path in paths] == [0, 0, 0, 0]
    assert all(path.stat().st_size for path in paths)


def test_a_pattern(runner: Runner, place: Place) -> None:
    first, second, deeper, other = files_in(place)
    runner.run("free", path=place.directory / "rtemap_*", unlink=1)
    assert [path.exists() for path in (first, second, deeper, other)] == [False, False, True, True]
    runner.run("free", path=place.directory / "*" / "*[0-9]", shrink=1)
    assert (deeper.stat().st_size, allocated(deeper)) == (0, 0)
    assert other.stat().st_size
    assert runner.refused("free", path=place.directory / "none*").errno == errno.ENOENT
    literal = place.directory / "a[b]*"
    make_dirty(literal, max(place.unit, HUGE))
    runner.run("clear", path=literal, offset=0, length=4096)
    assert runner.refused("clear", path=place.directory / "o*", offset=4096).errno == errno.EINVAL


def test_a_pattern_written_into_all(runner: Runner, place: Place) -> None:
    first, second, *_ = files_in(place)
    runner.run("fill", path=place.directory / "rtemap_*", pattern="a55a")
    assert {file.read_bytes()[:4] for file in (first, second)} == {bytes.fromhex("a55aa55a")}
    found = counts(runner.result(runner.prepare("verify", path=place.directory / "rtemap_*", pattern="a55a")))
    both = first.stat().st_size + second.stat().st_size
    assert (found["files"], found["compared"], found["differing"]) == (2, both, 0)
    with pytest.raises(Finding) as caught:
        runner.result(runner.prepare("verify", path=place.directory / "rtemap_*", pattern="5a"))
    header, row = caught.value.result.splitlines()[-1001:][0::1000]
    assert (header.split()[-1], row.split()[-1] in {str(first), str(second)}) == ("path", True)


@smallest
def test_a_survey_has_a_row_for_each_file(runner: Runner, pool: TestPool, hugetlbfs: Path) -> None:
    page = pool.page_size
    paths = files_in(Place(hugetlbfs, page))
    for path in (hugetlbfs, hugetlbfs / "*"):
        result = runner.result(runner.prepare("survey", path=path))
        found = counts(result)
        seen = paths if path == hugetlbfs else [each for each in paths if each.parent == hugetlbfs]
        pages = [each.stat().st_size // page for each in seen]
        present = [allocated(each) // page for each in seen]
        assert (found["files"], found["pages"], found["present"]) == (len(seen) + 1, sum(pages), sum(present))
        assert (found["holes"], found["left_out"]) == (sum(pages) - sum(present), 0)
        rows = {words[-1]: [int(each) for each in words[:3]] for words in table(result)}
        assert rows.pop(str(hugetlbfs / "empty")) == [0, 0, 0]
        assert rows == {
            str(each): [all_of, there, all_of - there] for each, all_of, there in zip(seen, pages, present, strict=True)
        }


def table(result: str) -> Sequence[list[str]]:
    lines = [line.split() for line in result.splitlines()]
    header = next(index for index, line in enumerate(lines) if line[-1] == "path")
    return lines[header + 1 :]


def test_files_of_others_are_refused_together_and_nothing_is_touched(runner: Runner, place: Place) -> None:
    paths = files_in(place)
    with used(paths[1], "maps"):
        for operation in ("free", "clear"):
            refusal = runner.refused(operation, path=place.directory / "*")
            assert (refusal.errno, type(refusal)) == (errno.EBUSY, TargetError)
            assert str(paths[1]) in refusal.message
        assert allocated(paths[0])
        runner.run("free", path=place.directory / "*", force=1)
    assert allocated(paths[1]) == 0


def test_files_that_go_or_are_replaced_meanwhile_are_left_alone(runner: Runner, place: Place) -> None:
    """The name of a file may lead to one that was not meant."""
    unit = max(place.unit, HUGE)
    first, second, deeper, other = files_in(place)
    make_dirty(other, unit)
    plan = runner.prepare("free", path=place.directory / "rtemap_*", unlink=1)
    first.unlink()
    second.unlink()
    os.link(other, second)
    result = counts(runner.result(plan))
    assert (result["files"], result["gone"]) == (2, 2)
    assert allocated(other)
    assert second.exists()
    plan = runner.prepare("clear", path=deeper.parent / "*")
    os.truncate(deeper, unit)
    runner.work(plan)
    assert is_all(0, deeper, 0, unit)


@pytest.mark.parametrize("operation", ["clear", "free", "survey", "verify"])
def test_a_file_that_is_replaced_by_something_else_stops_nothing(
    runner: Runner, place: Place, operation: str, disk: Path
) -> None:
    """Its owner may do that at any time, while root scrubs the files of all."""
    first, second, _, other = files_in(place)
    more = {"pattern": "ff"} if operation == "verify" else {}
    plan = runner.prepare(operation, path=place.directory / "rtemap_*", **more)
    first.unlink()
    os.mkfifo(first)
    second.unlink()
    second.mkdir()
    result = counts(runner.result(plan))
    assert (result["files"], result["gone"]) == (2, 2)
    if not is_huge(place):
        plan = runner.prepare(operation, path=place.directory / "other*", **more)
        other.unlink()
        other.symlink_to(disk / "file")
        (disk / "file").write_bytes(b"x")
        assert counts(runner.result(plan))["gone"] == 1


@pytest.mark.parametrize("operation", ["clear", "fill"])
def test_a_file_that_is_cut_while_it_is_overwritten_stops_nothing(
    runner: Runner, place: Place, monkeypatch: pytest.MonkeyPatch, operation: str
) -> None:
    unit = max(place.unit, HUGE)
    first, second, *_ = files_in(place)
    write = _Overwriter._write

    def cut(writer: _Overwriter, mapping: Mapping, position: int, end: int) -> int:
        if writer._target.path == str(second) and second.stat().st_size > unit:
            os.truncate(second, unit)
        return write(writer, mapping, position, end)

    more, byte = ({"pattern": "5a"}, 0x5A) if operation == "fill" else ({}, 0)
    plan = runner.prepare(operation, path=place.directory / "rtemap_*", **more)
    monkeypatch.setattr(_Overwriter, "_write", cut)
    assert counts(runner.result(plan))["files"] == 2
    assert second.stat().st_size == unit
    assert is_all(byte, first, 0, unit)
    assert is_all(byte, second, 0, unit)


def test_one_that_cannot_be_removed_keeps_none_of_the_others(runner: Runner, place: Place) -> None:
    first, second, *_ = files_in(place)
    plan = runner.prepare("free", path=place.directory / "rtemap_*", shrink=1)
    os.truncate(first, 8 * max(place.unit, HUGE))  # the new part may be somebody's data
    with pytest.raises(TargetError) as caught:
        runner.work(plan)
    assert caught.value.errno == errno.EBUSY
    assert caught.value.__notes__ == ["1 of 2 files are left"]
    assert (first.stat().st_size, second.stat().st_size) == (8 * max(place.unit, HUGE), 0)


@pytest.mark.parametrize("pattern", [".", "rtemap_*"])
def test_the_rest_alone_is_refused(runner: Runner, place: Place, pattern: str) -> None:
    """And without anything done, it is done from the start."""
    files_in(place)
    path = place.directory / (pattern if is_huge(place) else "rtemap_*")
    plan = runner.prepare("clear", path=path)
    (node,) = plan.nodes
    plan.abort()
    (operation,) = runner.operations["clear"].meanings
    parameters = parse_parameters(operation.parameters, {"path": str(path)})
    operation.baseline(parameters, [node]).require_files(parameters)
    runner.prepare("clear", [node], path=path).abort()
    refusal = runner.refused("clear", [Node(HUGE, node.size - HUGE, node.nid)], path=path)
    assert isinstance(refusal, NotSupported)
    assert refusal.message == "resume: the list of finished files is lost; start a new task"


def test_pages_of_one_size(runner: Runner, area: Path) -> None:
    sizes = filesystems.page_sizes()
    if os.geteuid() or len(sizes) < 2:
        pytest.skip("only root can mount, and there must be two sizes of huge pages")
    with filesystems.hugetlbfs(area / "a", sizes[0]) as a, filesystems.hugetlbfs(area / "b", sizes[1]) as b:
        (a / "f").touch()
        (b / "f").touch()
        refusal = runner.refused("clear", path=area / "?" / "f")
        assert isinstance(refusal, InvalidValue)
        assert "pages of 2M and 1G" in refusal.message
        plan = runner.prepare("clear", path=a)
        assert sum(node.size for node in plan.nodes) == 0
        plan.abort()


def test_too_many(runner: Runner, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    files_in(place)
    monkeypatch.setattr(_many, "FILES_MAX", 3)
    assert runner.refused("survey", path=place.directory / "*").errno == errno.E2BIG
    assert runner.refused("free", path=place.directory / "*").errno == errno.E2BIG


@smallest
@pytest.mark.parametrize("pattern", ["", "*"], ids=["directory", "pattern"])
@pytest.mark.parametrize("operation", ["clear", "free", "survey"])
def test_what_goes_while_the_files_are_found_keeps_none_of_the_others(
    runner: Runner,
    pool: TestPool,
    hugetlbfs: Path,
    operation: str,
    pattern: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The first open of a file removes another file, and the directory of a third."""
    for name in ("one", "two"):
        (hugetlbfs / name).mkdir()
        (hugetlbfs / name / "file").touch()
        (hugetlbfs / f"{name} file").touch()

    def removing(kernel: Kernel, path: str, **more: Any) -> Target:
        kept = os.path.dirname(path) if os.path.dirname(path) != str(hugetlbfs) else path
        for each in list(hugetlbfs.iterdir()):
            if str(each) != kept:
                shutil.rmtree(each) if each.is_dir() else each.unlink()
        return open_target(kernel, path, **more)

    monkeypatch.setattr(_many, "open_target", removing)
    result = counts(runner.result(runner.prepare(operation, path=hugetlbfs / pattern)))
    assert (result["files"], result["gone"]) == (1, 0)


@pytest.mark.parametrize("replaced", [False, True])
@pytest.mark.parametrize("moment", ["guard", "unlink"])
def test_a_file_that_goes_just_before_it_is_looked_at_or_removed(
    runner: Runner, place: Place, monkeypatch: pytest.MonkeyPatch, moment: str, replaced: bool
) -> None:
    first, second, *_ = files_in(place)
    where = free if moment == "guard" else free._Name
    original = getattr(where, moment)

    def going(*arguments: Any) -> None:
        if str(first) in {getattr(each, "path", "") for each in arguments}:
            first.unlink()
            if replaced:
                first.touch()
        original(*arguments)

    monkeypatch.setattr(where, moment, going)
    runner.run("free", path=place.directory / "rtemap_*", unlink=1)
    assert (first.exists(), second.exists()) == (replaced, False)
