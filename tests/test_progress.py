"""The page that a daemon and a worker share: what a reader may conclude, whatever happens to the writer."""

from __future__ import annotations

import os
import resource
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ktaskfs.errors import InvalidValue
from ktaskfs.progress import (
    RESULT_MAX,
    Phase,
    Requests,
    Shape,
    Snapshot,
    Span,
    ThreadState,
    WorkerPage,
    create_page,
    read_requests,
    read_result,
    read_snapshot,
    write_requests,
)
from tests.support.filesystems import tmpfs as mount_tmpfs

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from ktaskfs.ktask import Monitor

SHAPE = Shape(slots=3, nodes=4)


@pytest.fixture
def page(tmp_path: Path) -> Iterator[int]:
    fd = create_page(str(tmp_path / "page"), SHAPE, Requests())
    yield fd
    os.close(fd)


def units(spans: Sequence[Span]) -> list[int]:
    """Every unit of ``spans``; none may be named twice."""
    found = [unit for span in spans for unit in range(span.start, span.end)]
    assert len(found) == len(set(found))
    return found


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


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount tmpfs")
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


# ---- a crash at any store ----


class Crash(Exception):
    """The worker died here."""


class Words:
    """The words of a page, until the store number ``crash``: that one is not made, nor any after it."""

    def __init__(self, words: memoryview, crash: int | None) -> None:
        self.words = words
        self.left = crash
        self.stores = 0

    def __getitem__(self, index: Any) -> Any:
        return self.words[index]

    def __setitem__(self, index: int | slice, value: Any) -> None:
        single = range(len(self.words))[index] if isinstance(index, slice) else [index]
        values = list(value) if isinstance(index, slice) else [value]
        for at, word in zip(single, values, strict=True):
            if self.left == self.stores:
                raise Crash
            self.stores += 1
            self.words[at] = word


@dataclass(frozen=True)
class Step:
    """One thing that happens to a task: thread ``slot`` finishes its chunk if it has one, and takes ``size`` units."""

    slot: int
    node: int
    size: int
    what: str


STEPS = st.lists(
    st.builds(
        Step,
        st.integers(0, SHAPE.slots - 1),
        st.integers(0, 1),
        st.integers(1, 4),
        st.sampled_from(["take", "take", "take", "wait", "fail", "leave"]),
    ),
    max_size=12,
)
SPANS = [Span(100, 110, 0), Span(110, 117, -1)]


class Model:
    """Plays the scheduler to a page, keeping the truth beside it."""

    def __init__(self, monitor: Monitor) -> None:
        self.monitor = monitor
        self.handed = [0, 0]
        self.chunks: dict[int, tuple[int, int, int]] = {}
        self.failed: set[int] = set()
        self.finished: set[int] = set()

    def play(self, steps: Sequence[Step]) -> None:
        for step in steps:
            if step.slot not in self.failed:
                self.play_step(step)

    def play_step(self, step: Step) -> None:
        chunk = self.chunks.pop(step.slot, None)
        if chunk is not None and step.what == "fail":
            self.failed.add(step.slot)
            self.monitor.chunk_failed(step.slot, *chunk)
            self.monitor.thread_ended(step.slot)
            return
        if chunk is not None:
            node, start, end = chunk
            # The chunk function has returned: from here on the units are done, whoever knows it.
            self.finished |= set(range(SPANS[node].start + start, SPANS[node].start + end))
            self.monitor.chunk_done(step.slot, node, start, end, 1000)
        if step.what == "wait":
            self.monitor.thread_waits(step.slot, "paused")
        elif step.what == "leave":
            self.monitor.thread_ended(step.slot)
            self.monitor.thread_started(step.slot, 1000 + step.slot, -1)
        else:
            self.take(step)

    def take(self, step: Step) -> None:
        start = self.handed[step.node]
        end = min(start + step.size, SPANS[step.node].end - SPANS[step.node].start)
        if start < end:
            self.chunks[step.slot] = step.node, start, end
            self.monitor.chunk_assigned(step.slot, step.node, start, end)
            self.handed[step.node] = end
            self.monitor.node_advanced(step.node, end)


def run_until(steps: Sequence[Step], crash: int | None, fd: int) -> tuple[Model, int]:
    """A worker's whole life on the page ``fd`` up to the store number ``crash``; the stores that were made."""
    page = WorkerPage(fd)
    words = Words(page._words, crash)
    page._words = words  # type: ignore[assignment]
    model = Model(page)
    try:
        page.begin(SPANS, 17)
        for slot in range(SHAPE.slots):
            page.thread_started(slot, 1000 + slot, slot % 2)
        model.play(steps)
        page.end(Phase.CANCELLED, number=4, position=7, message="m", result="")
    except Crash:
        pass
    return model, words.stores


ALL = set(range(100, 117))


@settings(max_examples=25, deadline=None)
@given(STEPS)
@example([Step(0, 0, 4, "take"), Step(1, 0, 4, "take"), Step(0, 1, 4, "take"), Step(1, 0, 4, "fail")])
def test_whenever_the_worker_dies_no_unit_is_lost(steps: list[Step]) -> None:
    _, stores = run_until(steps, None, new_page())
    for crash in range(stores + 1):
        fd = new_page()
        model, _ = run_until(steps, crash, fd)
        snapshot = read_snapshot(fd, SHAPE)
        os.close(fd)
        left = set(units(snapshot.remaining()))
        if snapshot.nodes:
            assert left >= ALL - model.finished
            assert left <= ALL
        assert snapshot.done <= len(model.finished)
        if snapshot.total:
            assert snapshot.done + len(left) == snapshot.total == 17
        assert sum(each.units for each in snapshot.threads) <= len(model.finished)


def new_page() -> int:
    fd = os.memfd_create("page")
    os.close(fd)
    path = f"/dev/shm/ktask-page-{os.getpid()}-{threading.get_native_id()}"
    fd = create_page(path, SHAPE, Requests())
    os.unlink(path)
    return fd


@settings(deadline=None)
@given(STEPS)
def test_between_two_calls_the_page_is_exact(steps: list[Step]) -> None:
    fd = new_page()
    page = WorkerPage(fd)
    page.begin(SPANS, 17)
    for slot in range(SHAPE.slots):
        page.thread_started(slot, 1000 + slot, 0)
    model = Model(page)
    for step in steps:
        model.play([step])
        snapshot = read_snapshot(fd, SHAPE)
        assert set(units(snapshot.remaining())) == ALL - model.finished
        assert snapshot.done == len(model.finished) == sum(each.units for each in snapshot.threads)
    os.close(fd)


def test_once_taking_back_has_begun_nothing_is_done(page: int) -> None:
    worker = WorkerPage(page)
    worker.begin(SPANS, 17)
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
    worker.begin(SPANS, 17)
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
    assert read_snapshot(page, SHAPE).remaining() == (Span(104, 110, 0), Span(110, 117, -1))


# ---- the end, and the result ----


def test_the_end_as_it_was_told(page: int) -> None:
    worker = WorkerPage(page)
    worker.begin(SPANS, 17)
    worker.end(Phase.FAILED, number=12, position=-3, message="out of\nluck \u00e9", result="a 1\nb 2\n")
    snapshot = read_snapshot(page, SHAPE)
    assert (snapshot.phase, snapshot.errno, snapshot.error_position) == (Phase.FAILED, 12, -3)
    assert snapshot.message == "out of?luck \u00e9"
    assert snapshot.ended_ns >= snapshot.started_ns > 0
    assert read_result(page, SHAPE, snapshot) == "a 1\nb 2\n"


def test_long_words_are_cut(page: int) -> None:
    worker = WorkerPage(page)
    worker.end(Phase.DONE, message="m" * 5000, result="r" * (RESULT_MAX + 1))
    snapshot = read_snapshot(page, SHAPE)
    assert snapshot.message == "m" * 1023
    assert read_result(page, SHAPE, snapshot) == "r" * RESULT_MAX


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


# ---- whatever is in the file ----


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
        with pytest.raises(InvalidValue, match="is not one"):
            WorkerPage(fd)
    finally:
        os.close(fd)


def test_reading_beside_a_thread_at_work(page: int) -> None:
    """``finished`` counts a unit before the page does, so a reader may never know of more."""
    worker = WorkerPage(page)
    size = 20_000
    worker.begin([Span(0, size, -1)], size)
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
