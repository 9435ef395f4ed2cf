"""Copies that insert whole pages, and their other way if that is impossible."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import subprocess
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ktaskfs.errors import TargetError
from ktaskfs.host import userfaultfd
from ktaskfs.host.mapping import Mapping
from ktaskfs.ktask import TaskError
from ktaskfs.memory import tmpfs
from ktaskfs.memory.source import Source
from ktaskfs.operations.ranges import copy as copy_module
from ktaskfs.operations.ranges._range import source_length
from tests.memory.test_group_room import asleep
from tests.support import filesystems
from tests.support.as_caller import as_nobody
from tests.support.forked import run_forked
from tests.support.memory_files import HUGE, allocated, content, is_all, make_dirty, punch, same, write_bytes
from tests.support.poll import DEADLINE, until
from tests.support.resident import mapped_from
from tests.support.runner import SIZE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ktaskfs.ktask import Outcome
    from ktaskfs.operations.ranges.copy import CopyParameters
    from tests.support.hugepages import TestPool
    from tests.support.runner import Runner


RESERVED = Path("/sys/kernel/mm/hugepages/hugepages-2048kB/resv_hugepages")


@pytest.fixture
def small_pages(area: Path) -> Iterator[Path]:
    """A file that does not exist yet, on a filesystem where whole pages are inserted."""
    with filesystems.tmpfs(area / "small", 3 * SIZE, "huge=never") as directory:
        yield directory / "file"


@pytest.fixture(params=["hugetlbfs", "tmpfs"])
def target(request: pytest.FixtureRequest, pool_2m: TestPool, area: Path) -> Iterator[Path]:
    """A file that does not exist yet."""
    if request.param == "tmpfs":
        with filesystems.tmpfs(area / "target", 3 * SIZE, "huge=never") as directory:
            yield directory / "file"
    else:
        with filesystems.hugetlbfs(area / "target", HUGE) as directory:
            yield directory / "file"


@pytest.fixture(autouse=True, params=["sent", "inserted"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """How pages get into a tmpfs of ordinary pages: one thread at a time sends them, the others insert them."""
    way: str = request.param
    if way == "inserted":
        monkeypatch.setattr(Source, "send", lambda *arguments: 0)
    return way


def test_others_insert_while_one_sends(
    runner: Runner, small_pages: Path, plain: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    inserted = threading.Event()
    send, copy = Source.send, userfaultfd.copy

    def sent(source: Source, target: int, position: int, length: int) -> int:
        assert inserted.wait(DEADLINE)
        return send(source, target, position, length)

    def noted(fd: int, address: int, source: int, length: int) -> int:
        inserted.set()
        return copy(fd, address, source, length)

    monkeypatch.setattr(Source, "send", sent if way == "sent" else send)
    monkeypatch.setattr(userfaultfd, "copy", noted)
    runner.run("copy", source=plain, path=small_pages)
    assert inserted.is_set()
    assert same(plain, small_pages, SIZE)


def test_a_look_for_missing_pages_moves_nothing_that_is_sent(
    runner: Runner, small_pages: Path, plain: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Near a limit of memory one thread looks for holes of the target while another one sends to it."""
    looks: list[threading.Thread] = []
    send = Source.send

    def sent(source: Source, target: int, position: int, length: int) -> int:
        if not looks:
            looks.append(threading.Thread(target=copier._missing, args=(0, SIZE)))
            looks[0].start()
            until(lambda: asleep(looks[0]), "the look waits, or has ended")
        return send(source, target, position, length)

    make_dirty(small_pages, SIZE)
    plan = runner.prepare("copy", source=plain, path=small_pages)
    copier = getattr(plan.control.thread_func, "__self__")  # noqa: B009 - a bound method
    monkeypatch.setattr(Source, "send", sent)

    def finish(outcome: Outcome) -> str:
        looks[0].join()  # it uses files that the end of the plan closes
        return plan.finish(outcome)

    runner.work(plan._replace(finish=finish))
    assert same(plain, small_pages, SIZE)
    assert small_pages.stat().st_size == SIZE


def test_a_huge_page_counts_whole(runner: Runner, area: Path) -> None:
    """A chunk takes more than its data then, which matters near a limit of memory."""
    source = area / "source"
    with source.open("wb") as file:
        for position in range(0, 8 * HUGE, HUGE):
            file.seek(position)
            file.write(b"x" * 4096)
        file.truncate(8 * HUGE)
    with filesystems.tmpfs(area / "huge", 16 * HUGE, "huge=always") as directory:
        plan = runner.prepare("copy", source=source, path=directory / "file")
        before = allocated(directory / "file")
        missing = getattr(plan.control.thread_func, "__self__")._missing(0, 8 * HUGE)  # noqa: B009 - a bound method
        runner.work(plan)
        assert before < allocated(directory / "file") <= before + missing


def test_direct_reads_are_not_sent(
    runner: Runner, small_pages: Path, disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """sendfile(2) reads through the cache."""
    write_bytes(disk / "source", content(SIZE))
    plan = runner.prepare("copy", source=disk / "source", path=small_pages, direct=1)
    monkeypatch.delattr(os, "sendfile")
    runner.work(plan)
    assert same(disk / "source", small_pages, SIZE)


def test_nothing_is_read_through_a_buffer(
    runner: Runner, small_pages: Path, plain: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = runner.prepare("copy", source=plain, path=small_pages)
    with monkeypatch.context() as patch:
        patch.delattr(os, "preadv")
        patch.delattr(os, "pwrite")
        runner.work(plan)
    assert same(plain, small_pages, SIZE)
    assert allocated(small_pages) == SIZE


@pytest.mark.parametrize("seed", range(8))
def test_among_pages_that_are_there(runner: Runner, target: Path, plain: Path, area: Path, seed: int) -> None:
    """Any range of the source to any place; around it everything stays."""
    rng = random.Random(seed)
    make_dirty(target, SIZE + 4 * HUGE)
    for _ in range(4):
        punch(target, rng.randrange(18) * HUGE, rng.randrange(1, 5) * HUGE)
    reference = area / "reference"
    runner.run("copy", source=target, path=reference)
    offset, begin = rng.choice([0, HUGE, 4096, 4097]), rng.choice([0, 2 * HUGE, 12345])
    length = rng.randrange(1, SIZE - begin)
    runner.run("copy", source=plain, source_offset=begin, path=target, offset=offset, length=length)
    assert same(plain, target, length, (begin, offset))
    assert same(reference, target, offset)
    after = offset + length
    assert same(reference, target, SIZE + 4 * HUGE - after, (after, after))


@pytest.mark.parametrize("kind", ["hugetlbfs", "tmpfs"])
def test_a_hole_that_is_copied_gets_no_page(runner: Runner, target: Path, area: Path, kind: str) -> None:
    mounted = filesystems.hugetlbfs(area / "s", HUGE) if kind == "hugetlbfs" else filesystems.tmpfs(area / "s", SIZE)
    with mounted as directory:
        source = directory / "source"
        write_bytes(source, content(8 * HUGE))
        punch(source, 2 * HUGE, 3 * HUGE)
        runner.run("copy", source=source, path=target, sparse=0)
        assert allocated(source) == 5 * HUGE
        assert allocated(target) == 8 * HUGE
        assert same(source, target, 8 * HUGE)
        assert is_all(0, target, 2 * HUGE, 5 * HUGE)


def test_holes_of_huge_pages_that_the_caller_can_only_read(runner: Runner, pool_2m: TestPool, area: Path) -> None:
    with filesystems.hugetlbfs(area / "huge", HUGE) as directory:
        first, second = directory / "first", directory / "second"
        write_bytes(first, content(HUGE), HUGE)
        first.chmod(0o444)
        directory.chmod(0o777)

        def work() -> list[str]:
            runner.run("copy", source="/first", path="/second")
            survey, verify = runner.prepare("survey", path="/first"), runner.prepare("verify", path="/first")
            verify.abort()
            return [runner.result(survey)]

        (survey,) = as_nobody(directory, work)
        assert allocated(first) == allocated(second) == HUGE
        assert same(first, second, 2 * HUGE)
        assert f"0 {HUGE} 1 hole\n{HUGE} {HUGE} 1 0\n" in survey


@pytest.mark.parametrize("file", ["plain", "tmpfs"])
def test_little_is_mapped_at_a_time(
    runner: Runner, small_pages: Path, plain: Path, area: Path, file: str, way: str
) -> None:
    with filesystems.tmpfs(area / "from", SIZE, "huge=never") as directory:
        source = plain
        if file == "tmpfs":
            source = directory / "source"
            runner.run("copy", source=plain, path=source)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(tmpfs, "WINDOW", 2 * HUGE)
            most = most_mapped(runner, source, small_pages)
        assert most <= 8 * HUGE, "one of each file for each thread"
        assert most or way == "sent", "on a busy machine one thread may send everything"


def most_mapped(runner: Runner, source: Path, target: Path) -> int:
    """The maximum of mapped bytes of both files, before and after any system call."""
    largest = 0

    def watched(method: Callable[[Mapping, int, int], None]) -> Callable[[Mapping, int, int], None]:
        def call(mapping: Mapping, start: int, length: int) -> None:
            nonlocal largest
            before = mapped_from([source, target])
            method(mapping, start, length)
            largest = max(largest, before, mapped_from([source, target]))

        return call

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Mapping, "populate_read", watched(Mapping.populate_read))
        patch.setattr(Mapping, "let_go", watched(Mapping.let_go))
        runner.run("copy", source=source, path=target)
    return largest


def test_the_source_is_shortened_between_two_windows(
    runner: Runner, small_pages: Path, plain: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After its pages have been looked at, and before they are copied."""
    populate = Mapping.populate_read

    def cut(mapping: Mapping, start: int, length: int) -> None:
        populate(mapping, start, length)
        os.truncate(plain, HUGE)

    plan = runner.prepare("copy", source=plain, path=small_pages)
    monkeypatch.setattr(Mapping, "populate_read", cut)
    with pytest.raises(Exception, match="shorter|truncated|ends") as caught:
        runner.work(plan)
    assert str(plain) in str(caught.value.__cause__ or caught.value)


@pytest.mark.parametrize("sparse", [0, 1])
def test_the_source_is_cut_within_its_last_page(runner: Runner, target: Path, plain: Path, sparse: int) -> None:
    plan = runner.prepare("copy", source=plain, path=target, sparse=sparse)
    os.truncate(plain, SIZE - 100)
    error = runner.failure(plan)
    assert isinstance(error, TargetError)
    assert error.errno == errno.ENXIO


@pytest.mark.parametrize("size", [499712, 999424, 40 << 20])
@pytest.mark.parametrize("more", [256 << 10, 4 << 20])
def test_the_source_grows_as_soon_as_it_is_mapped(
    runner: Runner, small_pages: Path, area: Path, monkeypatch: pytest.MonkeyPatch, size: int, more: int
) -> None:
    source = area / "log"
    source.write_bytes(content(size))

    def grown(opened: Source, offset: int, parameters: CopyParameters) -> int:
        opened.map()
        with source.open("ab") as file:
            file.write(content(more))
        return source_length(opened, offset, parameters)

    monkeypatch.setattr(copy_module, "source_length", grown)

    def work() -> int:
        return runner.run("copy", source=source, path=small_pages).units_done

    assert run_forked(work) == size + more
    assert same(source, small_pages, size + more)
    assert small_pages.stat().st_size == size + more


@pytest.mark.parametrize("sparse", [0, 1])
def test_pages_of_a_source_that_were_never_written_stay_so(
    runner: Runner, target: Path, area: Path, sparse: int
) -> None:
    with filesystems.tmpfs(area / "from", SIZE, "huge=never") as directory:
        source = directory / "source"
        subprocess.run(["fallocate", "-l", str(4 * HUGE), str(source)], check=True)
        runner.run("copy", source=source, path=target, sparse=sparse)
        fd = os.open(source, os.O_RDONLY)
        with pytest.raises(OSError, match="No such device or address"):
            os.lseek(fd, 0, os.SEEK_DATA)
        os.close(fd)
        assert is_all(0, target, 0, 4 * HUGE)


def test_a_target_of_huge_pages_is_truncated_all_the_time(
    runner: Runner, pool_2m: TestPool, plain: Path, area: Path
) -> None:
    """The kernel must not lose count of the pages that it has reserved: this pool is everybody's."""
    with filesystems.hugetlbfs(area / "huge", HUGE) as directory:
        path, available = directory / "file", pool_2m.available
        for _ in range(20):
            plan = runner.prepare("copy", source=plain, path=path)
            stop = threading.Event()
            other = threading.Thread(target=truncate_until, args=(path, stop))
            other.start()
            try:
                with contextlib.suppress(TaskError, TargetError):
                    runner.work(plan)
            finally:
                stop.set()
                other.join()
            path.unlink()
            assert int(RESERVED.read_text()) < 1 << 20
    assert pool_2m.available == available


def truncate_until(path: Path, stop: threading.Event) -> None:
    while not stop.is_set():
        os.truncate(path, 0)
        os.truncate(path, SIZE)
