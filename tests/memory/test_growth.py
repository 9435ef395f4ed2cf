"""The changes of a task to its target before the first chunk, and their undo, while others use the same file."""

from __future__ import annotations

import errno
import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ktaskfs.errors import NotSupported, TargetError
from ktaskfs.host import syscalls
from ktaskfs.host.mapping import Mapping
from ktaskfs.host.presence import data_extents
from ktaskfs.host.target import Target
from ktaskfs.ktask import LinuxMachine, Placement
from ktaskfs.memory.growth import Growth
from tests.support.memory_files import HUGE, allocated, content, is_all, make_dirty, write_bytes
from tests.support.runner import not_begun

if TYPE_CHECKING:
    from ktaskfs.operations.base.plan import Plan
    from tests.support.runner import Place, Runner

LENGTH = 8 * HUGE
OPERATIONS = pytest.mark.parametrize("operation", ["fallocate", "copy"])


def growing(runner: Runner, operation: str, path: Path, area: Path, **texts: object) -> Plan:
    """A task that makes ``path`` LENGTH bytes long; a copy finds a hole, which is to stay one."""
    if operation == "copy":
        (area / "source").touch()
        os.truncate(area / "source", LENGTH)
        return runner.prepare("copy", source=area / "source", path=path, **texts)
    return runner.prepare("fallocate", path=path, length=LENGTH, **texts)


def past_the_end(path: Path, offset: int, length: int) -> None:
    """Pages that lie there already, as ``fallocate keep_size=1`` leaves them."""
    subprocess.run(["fallocate", "-n", "-o", str(offset), "-l", str(length), str(path)], check=True)


def left_by(operation: str, path: Path) -> int:
    """Bytes that ``growing`` may leave in a file of others: ``fallocate`` keeps the block of tmpfs before the end."""
    on_tmpfs = os.statvfs(path).f_bsize == 4096
    return path.stat().st_blksize if operation == "fallocate" and on_tmpfs else 0


def test_undo_spares_what_another_task_has_allocated(runner: Runner, place: Place) -> None:
    path = place.directory / "vm"
    first = runner.prepare("fallocate", path=path, length=LENGTH, undo=1)
    runner.run("fallocate", path=path, length=LENGTH)
    first.finish(not_begun(first))
    assert (path.stat().st_size, allocated(path)) == (LENGTH, LENGTH)


@pytest.mark.parametrize("new", [False, True])
@OPERATIONS
def test_abort_spares_what_others_have_written(
    runner: Runner, place: Place, area: Path, operation: str, new: bool
) -> None:
    path = place.directory / "file"
    if not new:
        make_dirty(path, HUGE)
    plan = growing(runner, operation, path, area)
    write_bytes(path, content(HUGE), 4 * HUGE)
    plan.abort()
    assert path.stat().st_size == LENGTH
    assert is_all(0xFF, path, 0, HUGE) is not new
    with path.open("rb") as file:
        assert os.pread(file.fileno(), HUGE, 4 * HUGE) == content(HUGE)


def test_abort_spares_what_others_have_appended_to_a_page(runner: Runner, tmpfs: Path, area: Path) -> None:
    path = tmpfs / "file"
    path.write_bytes(b"x" * 100)
    plan = growing(runner, "copy", path, area)
    with path.open("r+b") as file:
        os.pwrite(file.fileno(), b"precious", 100)
    plan.abort()
    assert path.read_bytes()[:108] == b"x" * 100 + b"precious"


@OPERATIONS
def test_abort_shortens_beside_what_was_there(runner: Runner, place: Place, area: Path, operation: str) -> None:
    path = place.directory / "file"
    make_dirty(path, HUGE)
    growing(runner, operation, path, area).abort()
    assert (path.stat().st_size, allocated(path)) == (HUGE, HUGE)


def test_abort_shortens_a_file_of_no_whole_pages(runner: Runner, area: Path, place: Place) -> None:
    for path in (place.directory / "file", area / "file"):
        if path.parent == area or place.unit == 4096:
            path.write_bytes(b"x" * 100)
            before = allocated(path)
            growing(runner, "copy", path, area).abort()
            assert path.read_bytes() == b"x" * 100
            assert 0 < allocated(path) <= before  # ftruncate(2) splits a huge page


@OPERATIONS
def test_abort_leaves_a_file_that_has_another_name_by_now(
    runner: Runner, place: Place, area: Path, operation: str
) -> None:
    for new in (False, True):
        path, moved = place.directory / "file", place.directory / "moved"
        if not new:
            path.touch()
        plan = growing(runner, operation, path, area)
        path.rename(moved)
        path.touch()
        plan.abort()
        assert (path.stat().st_size, moved.stat().st_size) == (0, LENGTH)


@OPERATIONS
def test_abort_leaves_a_new_file_that_another_task_has_opened(
    runner: Runner, place: Place, area: Path, operation: str
) -> None:
    path = place.directory / "file"
    first = growing(runner, operation, path, area)
    second = runner.prepare("fallocate", path=path, length=LENGTH)
    first.abort()
    runner.work(second)
    assert (path.stat().st_size, allocated(path)) == (LENGTH, LENGTH)


@OPERATIONS
def test_pages_past_the_old_end_stay(runner: Runner, place: Place, area: Path, operation: str) -> None:
    path = place.directory / "file"
    path.touch()
    os.truncate(path, HUGE)
    past_the_end(path, HUGE, 2 * HUGE)
    before = allocated(path)
    growing(runner, operation, path, area).abort()
    assert before <= allocated(path) <= before + left_by(operation, path)


@OPERATIONS
def test_pages_past_the_new_end_stay(runner: Runner, place: Place, area: Path, operation: str) -> None:
    path = place.directory / "file"
    make_dirty(path, 2 * HUGE)
    past_the_end(path, LENGTH + HUGE, 2 * HUGE)
    before = allocated(path)
    growing(runner, operation, path, area).abort()
    assert before <= allocated(path) <= before + left_by(operation, path)


def test_undo_leaves_pages_past_the_old_end(runner: Runner, place: Place) -> None:
    path = place.directory / "file"
    path.touch()
    os.truncate(path, 2 * HUGE)
    past_the_end(path, 2 * HUGE, 4 * HUGE)
    if place.unit == 4096:  # pages of tmpfs that were never written cannot be told from holes
        with pytest.raises(NotSupported):
            runner.prepare("fallocate", path=path, length=LENGTH, undo=1, chunk=HUGE)
        assert (path.stat().st_size, allocated(path)) == (2 * HUGE, 4 * HUGE)
        return
    plan = runner.prepare("fallocate", path=path, length=LENGTH, undo=1, chunk=HUGE)
    plan.control.thread_func(0, LENGTH)
    assert plan.control.undo_func is not None
    plan.control.undo_func(0, LENGTH)
    plan.finish(not_begun(plan))
    assert allocated(path) == 4 * HUGE


def test_undo_is_refused_where_pages_past_the_end_would_go_with_it(runner: Runner, place: Place) -> None:
    path = place.directory / "file"
    make_dirty(path, 2 * HUGE)
    plan = runner.prepare("fallocate", path=path, length=LENGTH, keep_size=1, undo=1)
    plan.abort()
    past_the_end(path, 4 * HUGE, HUGE)
    with pytest.raises(NotSupported):
        runner.prepare("fallocate", path=path, length=LENGTH, keep_size=1, undo=1)
    assert (path.stat().st_size, allocated(path)) == (2 * HUGE, 3 * HUGE)


@OPERATIONS
def test_growing_frees_nothing(runner: Runner, place: Place, area: Path, operation: str) -> None:
    path = place.directory / "file"
    path.touch()
    past_the_end(path, 0, 4 * HUGE)
    plan = growing(runner, operation, path, area)
    assert path.stat().st_size == LENGTH
    assert allocated(path) == 4 * HUGE + left_by(operation, path)
    plan.abort()


def test_a_start_that_cannot_keep_the_last_page_leaves_nothing(
    runner: Runner, tmpfs: Path, area: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(mapping: Mapping, start: int, length: int) -> None:
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    monkeypatch.setattr(Mapping, "populate_write", refused)
    with pytest.raises(TargetError):
        growing(runner, "fallocate", tmpfs / "file", area)
    assert not (tmpfs / "file").exists()


def test_fallocate_never_frees_a_page_to_extend_a_file(
    runner: Runner, place: Place, area: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process's data stays, written at any moment."""
    path, freed = place.directory / "file", list[tuple[int, int]]()
    monkeypatch.setattr(syscalls, "punch_hole", lambda fd, start, end: freed.append((start, end)))
    plan = growing(runner, "fallocate", path, area)
    assert freed == []
    plan.abort()
    assert not path.exists()


def test_the_last_page_comes_from_the_last_node(
    runner: Runner, tmpfs: Path, area: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine, original = LinuxMachine(), syscalls.fallocate
    before, during = machine.placement(), list[Placement]()
    if before.policy is None:
        pytest.skip("memory policies are not to be had here")

    def watched(fd: int, mode: int, offset: int, length: int) -> None:
        during.append(machine.placement())
        original(fd, mode, offset, length)

    monkeypatch.setattr(syscalls, "fallocate", watched)
    growing(runner, "fallocate", tmpfs / "file", area, nodes="0").abort()
    assert [each.policy for each in during] == [(1, frozenset({0}))]  # MPOL_PREFERRED
    assert machine.placement() == before


def test_a_file_that_fallocate_has_extended_can_be_filled_with_undo(runner: Runner, place: Place) -> None:
    path = place.directory / "file"
    first = runner.prepare("fallocate", path=path, length=LENGTH)
    second = runner.prepare("fallocate", path=path, length=LENGTH, undo=1, chunk=HUGE)
    second.control.thread_func(0, LENGTH)
    assert second.control.undo_func is not None
    second.control.undo_func(0, LENGTH)
    second.finish(not_begun(second))
    assert allocated(path) == left_by("fallocate", path)
    first.abort()
    assert not path.exists()


def test_undo_frees_the_last_page_too(runner: Runner, place: Place) -> None:
    path = place.directory / "file"
    plan = runner.prepare("fallocate", path=path, length=LENGTH, undo=1)
    plan.control.thread_func(0, LENGTH)
    assert allocated(path) == LENGTH
    path.rename(place.directory / "renamed")  # so that it is not removed at the end
    assert plan.control.undo_func is not None
    plan.control.undo_func(0, LENGTH)
    plan.finish(not_begun(plan))
    assert allocated(place.directory / "renamed") == 0


def test_a_copy_frees_nothing_before_its_range(
    runner: Runner, tmpfs: Path, area: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, original = tmpfs / "file", syscalls.punch_hole

    def late(fd: int, start: int, end: int) -> None:
        with path.open("r+b") as file:
            os.pwrite(file.fileno(), b"precious", HUGE)
        original(fd, start, end)

    (area / "source").write_bytes(content(4096))
    with monkeypatch.context() as patch:
        patch.setattr(syscalls, "punch_hole", late)
        plan = runner.prepare("copy", source=area / "source", path=path, offset=HUGE + HUGE // 2)
    with path.open("rb") as file:
        if path.stat().st_blksize == HUGE:  # the huge page, which begins before the range, stays
            assert list(data_extents(file.fileno(), 0, 2 * HUGE)) == [(HUGE, path.stat().st_size)]
            assert not any(file.read())
        else:
            assert os.pread(file.fileno(), 8, HUGE) == b"precious"
    plan.abort()


def test_data_that_comes_while_a_file_grows(
    runner: Runner, tmpfs: Path, area: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, original = tmpfs / "file", syscalls.punch_hole

    def late(fd: int, start: int, end: int) -> None:
        with path.open("r+b") as file:
            file.write(content(HUGE))
        original(fd, start, end)

    monkeypatch.setattr(syscalls, "punch_hole", late)
    growing(runner, "copy", path, area).abort()
    assert path.read_bytes()[:HUGE] == content(HUGE)


@OPERATIONS
def test_two_that_extend_one_file_do_not_shorten_it(
    runner: Runner, place: Place, area: Path, operation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other task acts after each look at the size in turn."""
    original = Target.size
    for number in range(12):
        path, looks = place.directory / f"file {number}", list[int]()

        def size(target: Target, path: Path = path, looks: list[int] = looks, number: int = number) -> int:
            found = original(target)
            if target.path == str(path):
                looks.append(found)
                if len(looks) == number:
                    os.truncate(path, 2 * LENGTH)
            return found

        path.touch()
        with monkeypatch.context() as patch:
            patch.setattr(Target, "size", size)
            plan = growing(runner, operation, path, area)
            looked = len(looks)
        assert path.stat().st_size == (2 * LENGTH if looked >= number > 0 else LENGTH)
        plan.abort()


def test_a_memfd_gets_its_old_size(runner: Runner, pool_2m: object, area: Path) -> None:
    for flags in (0, os.MFD_HUGETLB):
        fd = os.memfd_create("guest", flags)
        growing(runner, "fallocate", Path(f"/proc/{os.getpid()}/fd/{fd}"), area).abort()
        assert os.fstat(fd).st_size == 0
        os.close(fd)


@OPERATIONS
def test_abort_of_a_new_file_that_somebody_removes_at_this_moment(
    runner: Runner, place: Place, area: Path, operation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = place.directory / "file"
    plan = growing(runner, operation, path, area)
    is_ours = Growth._is_ours

    def removing(growth: Growth) -> bool:
        ours = is_ours(growth)
        path.unlink()
        return ours

    monkeypatch.setattr(Growth, "_is_ours", removing)
    plan.abort()
    assert not path.exists()
