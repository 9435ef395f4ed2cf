"""The page that a daemon and a worker share: the conclusions of a reader at any state of the writer."""

from __future__ import annotations

import dataclasses
import os
import resource
import threading
from typing import TYPE_CHECKING

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ktaskfs.errors import InvalidValue
from ktaskfs.progress import (
    Phase,
    Requests,
    Shape,
    Snapshot,
    ThreadProgress,
    ThreadState,
    WorkerPage,
    create_page,
    read_requests,
    read_result,
    read_snapshot,
    write_requests,
)
from ktaskfs.result import RESULT_MAX
from ktaskfs.span import Node
from tests.support.filesystems import tmpfs as mount_tmpfs
from tests.support.pages import ALL, NODES, SHAPE, units

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def page(tmp_path: Path) -> Iterator[int]:
    fd = create_page(str(tmp_path / "page"), SHAPE, Requests())
    yield fd
    os.close(fd)


def test_a_new_page_says_nothing_and_asks_what_it_was_made_with(tmp_path: Path) -> None:
    requests = Requests(cancel=True, paused=True, threads=3, rate=2**40, nice=-5)
    fd = create_page(str(tmp_path / "page"), SHAPE, requests)
    try:
        assert os.fstat(fd).st_size == SHAPE.size
        assert os.fstat(fd).st_blocks * 512 >= SHAPE.size
        assert os.fstat(fd).st_mode & 0o777 == 0o600
        assert not os.get_inheritable(fd)
        assert read_requests(fd) == WorkerPage(fd).requests() == requests
        snapshot = read_snapshot(fd, SHAPE)
        assert (snapshot.phase, snapshot.total, snapshot.done) == (Phase.STARTING, 0, 0)
        assert not snapshot.remaining()
        assert not snapshot.threads
        assert not snapshot.nodes
    finally:
        os.close(fd)


def test_a_page_is_never_made_over_another(tmp_path: Path, page: int) -> None:
    with pytest.raises(FileExistsError):
        create_page(str(tmp_path / "page"), SHAPE, Requests())


@pytest.mark.usefixtures("root")
def test_a_page_that_does_not_fit_leaves_no_file(area: Path) -> None:
    with mount_tmpfs(area / "small", 8192) as small:
        before = len(os.listdir("/proc/self/fd"))
        with pytest.raises(OSError, match="No space left"):
            create_page(str(small / "page"), Shape(64, 64), Requests())
        assert list(small.iterdir()) == []
        assert len(os.listdir("/proc/self/fd")) == before


@given(
    st.booleans(),
    st.booleans(),
    st.integers(0, 2**31),
    st.integers(0, 2**63),
    st.integers(-20, 19),
)
def test_requests_arrive_unchanged(cancel: bool, paused: bool, threads: int, rate: int, nice: int) -> None:
    requests = Requests(cancel, paused, threads, rate, nice)
    fd = os.memfd_create("page")
    try:
        write_requests(fd, requests)
        assert read_requests(fd) == requests
    finally:
        os.close(fd)


def test_once_taking_back_has_begun_nothing_is_done(page: int) -> None:
    worker = WorkerPage(page)
    worker.begin(NODES, 17)
    worker.thread_started(0, 1, -1)
    worker.chunk_assigned(0, 0, 0, 10)
    worker.node_advanced(0, 10)
    worker.chunk_done(0, 0, 0, 10, 5)
    assert read_snapshot(page, SHAPE).done == 10
    worker.undo_started()
    snapshot = read_snapshot(page, SHAPE)
    assert (snapshot.done, snapshot.undone) == (0, True)
    assert set(units(snapshot.remaining())) == ALL


def test_what_the_threads_say(page: int) -> None:
    worker = WorkerPage(page)
    worker.begin(NODES, 17)
    worker.thread_started(0, 71, 0)
    worker.thread_started(1, 72, -1)
    worker.thread_started(2, 73, 1)
    worker.chunk_assigned(0, 0, 0, 4)
    worker.node_advanced(0, 4)
    worker.chunk_done(0, 0, 0, 4, 2_500_000)
    worker.chunk_assigned(0, 1, 0, 3)
    worker.node_advanced(1, 3)
    worker.chunk_failed(0, 1, 0, 3)
    worker.thread_ended(0)
    worker.thread_waits(1, "throttled")
    worker.thread_ended(2)
    first, second, third = read_snapshot(page, SHAPE).threads
    assert (first.tid, first.nid, first.state, first.chunks, first.units) == (71, 0, ThreadState.FAILED, 1, 4)
    assert (first.busy_us, first.node, first.start, first.end) == (2500, 1, 0, 3)
    assert (second.tid, second.nid, second.state) == (72, -1, ThreadState.THROTTLED)
    assert (third.slot, third.state, third.chunks) == (2, ThreadState.ENDED, 0)
    assert read_snapshot(page, SHAPE).remaining() == (Node(104, 6, 0), Node(110, 7, -1))


class Counted(tuple[ThreadProgress, ...]):
    """Counts how often somebody goes through it."""

    times = 0

    def __iter__(self) -> Iterator[ThreadProgress]:
        self.times += 1
        return super().__iter__()


def test_the_rest_of_many_ranges_looks_at_each_thread_once(page: int) -> None:
    """A task that was killed and resumed often has many ranges, and the daemon looks at each request."""
    worker = WorkerPage(page)
    worker.begin(NODES, 17)
    worker.thread_started(0, 71, 0)
    worker.chunk_assigned(0, 1, 0, 3)
    worker.node_advanced(1, 3)
    snapshot = read_snapshot(page, SHAPE)
    threads = Counted(snapshot.threads)
    many = dataclasses.replace(snapshot, threads=threads, nodes=snapshot.nodes * 10)
    assert len(many.remaining()) >= 10
    assert threads.times == 1


def test_the_end_as_it_was_told(page: int) -> None:
    worker = WorkerPage(page)
    worker.begin(NODES, 17)
    worker.end(Phase.FAILED, number=12, position=-3, message="out of\nluck \u00e9", result="a 1\nb 2\n")
    snapshot = read_snapshot(page, SHAPE)
    assert (snapshot.phase, snapshot.errno, snapshot.error_position) == (Phase.FAILED, 12, -3)
    assert snapshot.message == "out of\\012luck \u00e9"
    assert snapshot.ended_ns >= snapshot.started_ns > 0
    assert read_result(page, SHAPE, snapshot) == "a 1\nb 2\n"


def test_long_words_are_cut(page: int) -> None:
    worker = WorkerPage(page)
    worker.end(Phase.DONE, message="m" * 5000, result="r" * RESULT_MAX)
    snapshot = read_snapshot(page, SHAPE)
    assert snapshot.message == "m" * 1023
    assert read_result(page, SHAPE, snapshot) == "r" * RESULT_MAX


@pytest.mark.parametrize(("phase", "number", "message"), [(Phase.DONE, 27, "result"), (Phase.FAILED, 5, "sad")])
def test_a_result_that_is_too_long_is_a_failure_and_is_not_cut(
    page: int, phase: Phase, number: int, message: str
) -> None:
    worker = WorkerPage(page)
    worker.end(phase, number=5 if phase is Phase.FAILED else 0, message="sad", result="r" * (RESULT_MAX + 1))
    snapshot = read_snapshot(page, SHAPE)
    assert (snapshot.phase, snapshot.errno, snapshot.result_size) == (Phase.FAILED, number, 0)
    assert message in snapshot.message


@pytest.mark.parametrize(("phase", "number", "message"), [(Phase.DONE, 27, "result"), (Phase.FAILED, 5, "sad")])
def test_a_result_that_cannot_be_stored_is_a_failure_and_not_the_workers_death(
    page: int, phase: Phase, number: int, message: str
) -> None:
    worker = WorkerPage(page)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (SHAPE.size + 10, before[1]))  # CPython ignores SIGXFSZ
    try:
        worker.end(phase, number=5 if phase is Phase.FAILED else 0, message="sad", result="r" * 1000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    snapshot = read_snapshot(page, SHAPE)
    assert (snapshot.phase, snapshot.errno, snapshot.result_size) == (Phase.FAILED, number, 0)
    assert message in snapshot.message
    assert read_result(page, SHAPE, snapshot) == ""


def check_sane(snapshot: Snapshot) -> None:
    assert 0 <= snapshot.done <= snapshot.total
    assert 0 <= snapshot.errno < 4096
    assert snapshot.message.isprintable()
    assert len(snapshot.nodes) <= SHAPE.nodes
    assert len(snapshot.threads) <= SHAPE.slots
    inside = [(node.start, node.start + node.size) for node in snapshot.nodes]
    for span in snapshot.remaining():
        assert span.start < span.end or snapshot.undone
        assert any(low <= span.start for low, _ in inside)
        assert any(span.end <= high for _, high in inside)


@st.composite
def scribbles(draw: st.DrawFn) -> bytes:
    """A page that somebody else has written: small and great words, at random places, cut anywhere."""
    word = st.sampled_from([0, 1, 2, 5, 16, 2**31, 2**63, 2**64 - 1]) | st.integers(0, 40)
    words = draw(st.lists(word, min_size=SHAPE.words - 480, max_size=SHAPE.words - 480))
    report = draw(st.lists(word, min_size=32, max_size=32))
    data = b"".join(each.to_bytes(8, "little") for each in report + [0] * 448 + words)
    return data[: draw(st.integers(0, len(data)) | st.just(len(data)))]


@settings(deadline=None)
@given(scribbles() | st.binary(max_size=SHAPE.size))
def test_a_scribbled_page_is_read_without_harm(data: bytes) -> None:
    fd = os.memfd_create("page")
    try:
        os.write(fd, data)
        snapshot = read_snapshot(fd, SHAPE)
        check_sane(snapshot)
        read_result(fd, SHAPE, snapshot)
        requests = read_requests(fd)
        assert requests.threads >= 0
        assert requests.rate >= 0
        write_requests(fd, Requests(cancel=True))
        assert read_requests(fd) == Requests(cancel=True)
    finally:
        os.close(fd)


@given(st.binary(max_size=2 * SHAPE.size))
@example(b"")
@example(b"ktaskpg1" + b"\xff" * SHAPE.size)
@example(b"ktaskpg1" + b"\0" * 9)
def test_a_worker_refuses_a_page_that_is_none(data: bytes) -> None:
    fd = os.memfd_create("page")
    try:
        os.write(fd, data)
        with pytest.raises(InvalidValue, match="not a ktaskfs progress page"):
            WorkerPage(fd)
    finally:
        os.close(fd)


def test_reading_beside_a_thread_at_work(page: int) -> None:
    """``finished`` counts a unit before the page does, so a reader may never know of more."""
    worker = WorkerPage(page)
    size = 20_000
    worker.begin([Node(0, size, -1)], size)
    worker.thread_started(0, 1, -1)
    finished = 0

    def work() -> None:
        nonlocal finished
        for start in range(0, size, 10):
            worker.chunk_assigned(0, 0, start, start + 10)
            worker.node_advanced(0, start + 10)
            os.sched_yield()
            finished += 10
            worker.chunk_done(0, 0, start, start + 10, 1)

    thread = threading.Thread(target=work)
    thread.start()
    seen = 0
    while thread.is_alive():
        snapshot = read_snapshot(page, SHAPE)
        check_sane(snapshot)
        assert seen <= snapshot.done <= finished
        seen = snapshot.done
    thread.join()
    assert read_snapshot(page, SHAPE).done == size
