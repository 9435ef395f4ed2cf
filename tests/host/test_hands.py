"""Children that touch what could kill the process that touches it."""

from __future__ import annotations

import contextlib
import ctypes
import json
import mmap
import os
import resource
import signal
import threading
from typing import TYPE_CHECKING, Any

import pytest

from ktaskfs.host import syscalls
from ktaskfs.host.hands import Hands
from tests.support.forked import run_forked
from tests.support.hands import wait_for_one_thread
from tests.support.poll import until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ktaskfs.host.kernel import Kernel


@pytest.fixture(autouse=True)
def one_thread() -> None:
    wait_for_one_thread()


def pid_and_sum(start: int, end: int) -> bytes:
    return b"%d %d" % (os.getpid(), start + end)


@contextlib.contextmanager
def made(
    kernel: Kernel, touch: Callable[[int, int], bytes], most: int = 8, descriptors: tuple[int, ...] = ()
) -> Iterator[Hands]:
    before = children()
    with contextlib.closing(Hands(kernel, touch, descriptors, most)) as hands:
        yield hands
    assert children() <= before  # those of other tests may end meanwhile


def children() -> set[str]:
    with open(f"/proc/self/task/{os.getpid()}/children") as file:
        return set(file.read().split())


def answered(hands: Hands, start: int, end: int) -> list[int]:
    answer = hands.do(start, end)
    assert answer is not None
    return [int(word) for word in answer.split()]


def status(pid: int) -> dict[str, str]:
    with open(f"/proc/{pid}/status") as file:
        return {key: value.strip() for key, _, value in (line.partition(":") for line in file)}


def test_one_answers_again_and_again(kernel: Kernel) -> None:
    with made(kernel, pid_and_sum) as hands:
        answers = [answered(hands, number, 1 << 62) for number in range(10)]
    assert {pid for pid, _ in answers}.isdisjoint({os.getpid()})
    assert len({pid for pid, _ in answers}) == 1
    assert [found for _, found in answers] == [number + (1 << 62) for number in range(10)]


def test_each_thread_has_its_own_while_it_uses_it(kernel: Kernel) -> None:
    meet = threading.Barrier(3)
    reader, writer = os.pipe()
    found: list[bytes | None] = []

    def wait(start: int, end: int) -> bytes:
        os.write(writer, b"x")
        signal.pause()
        return b""

    def use() -> None:
        meet.wait()
        found.append(hands.do(0, 1))

    others = children()
    with made(kernel, wait, 2, (writer,)) as hands:
        threads = [threading.Thread(target=use) for _ in range(3)]
        for thread in threads:
            thread.start()
        got = b""
        while len(got) < 2:
            got += os.read(reader, 2)
        for each in children() - others:
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(each), signal.SIGKILL)
        for thread in threads:
            thread.join()
    os.close(reader)
    os.close(writer)
    assert found == [None] * 3


def test_what_it_raises_is_no_answer_and_does_not_end_it(kernel: Kernel) -> None:
    def odd(start: int, end: int) -> bytes:
        if start:
            raise OSError(start, "no")
        return b"%d" % os.getpid()

    with made(kernel, odd) as hands:
        first = hands.do(0, 0)
        assert hands.do(5, 0) is None
        assert hands.do(0, 0) == first


def test_where_they_can_do_little_they_are_not_asked_any_more(kernel: Kernel) -> None:
    reader, writer = os.pipe()

    def odd(start: int, end: int) -> bytes:
        os.write(writer, b"x")
        if start % 3:
            raise OSError
        return b""

    with made(kernel, odd, 8, (writer,)) as hands:
        found = [hands.do(number, 0) is not None for number in range(1000)]
    os.close(writer)
    with open(reader, "rb") as file:
        asked = len(file.read())
    assert 64 < asked < 300
    assert found == [number % 3 == 0 and number < asked for number in range(1000)]


def test_an_answer_that_is_too_long_is_none(kernel: Kernel) -> None:
    with made(kernel, lambda start, end: bytes(end)) as hands:
        assert hands.do(0, 1 << 20) is None
        assert hands.do(0, 10) == bytes(10)


@pytest.mark.parametrize("fault", ["SIGBUS", "SIGSEGV", "SIGKILL"])
def test_one_that_dies_is_not_replaced(kernel: Kernel, fault: str) -> None:
    def die(start: int, end: int) -> bytes:
        if fault == "SIGBUS":
            with short() as mapped:
                mapped[0] = 1
        elif fault == "SIGSEGV":
            ctypes.memset(0, 0, 1)
        os.kill(os.getpid(), signal.SIGKILL)
        return b""

    others = children()
    with made(kernel, die) as hands:
        assert hands.do(0, 0) is None
        assert hands.do(0, 0) is None
        (forker,) = children() - others
        until(lambda: status(int(forker))["State"].startswith("Z"), "the process that forks hands has ended")


@contextlib.contextmanager
def short() -> Iterator[mmap.mmap]:
    """A mapping of a file that has become too short for it."""
    fd = os.memfd_create("short")
    os.ftruncate(fd, 4096)
    with mmap.mmap(fd, 4096) as mapped:
        os.ftruncate(fd, 0)
        yield mapped


def test_the_others_go_on(kernel: Kernel) -> None:
    with made(kernel, pid_and_sum) as hands:
        first, second = hands._take(0), hands._take(0)
        assert first is not None
        assert second is not None
        hands._idle += [first, second]
        os.kill(first.pid, signal.SIGKILL)
        assert hands.do(0, 0) is None
        assert answered(hands, 0, 0)[0] == second.pid
        second.sock.close()


def test_without_room_for_processes_there_are_none(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> int:
        raise BlockingIOError

    with monkeypatch.context() as patch:
        patch.setattr(os, "fork", fail)
        with made(kernel, pid_and_sum) as hands:
            assert hands.do(0, 0) is None
    monkeypatch.setattr(syscalls, "clone_sibling", fail)
    with made(kernel, pid_and_sum) as hands:
        assert hands.do(0, 0) is None


def test_they_have_no_descriptor_but_those_that_they_need(kernel: Kernel) -> None:
    def descriptors(start: int, end: int) -> bytes:
        return " ".join(os.listdir("/proc/self/fd")).encode()

    reader, writer = os.pipe()
    with made(kernel, descriptors, 8, (writer,)) as hands:
        answer = hands.do(0, 0)
    os.close(reader)
    os.close(writer)
    assert answer is not None
    # The socket, and the one that the list is read from.
    assert len(set(map(int, answer.split())) - {0, 1, 2, writer}) == 2
    assert reader not in map(int, answer.split())


def test_they_die_with_the_process(kernel: Kernel) -> None:
    """Also in the middle of a chunk; by a signal of the kernel's, not by the end of a socket."""
    reader, writer = os.pipe()

    def work(start: int, end: int) -> bytes:
        os.write(writer, b"%d " % os.getpid())
        while True:
            pass

    pid = os.fork()
    if pid == 0:
        hands = Hands(kernel, work, {writer}, 8)
        threading.Thread(target=hands.do, args=(0, 0)).start()
        signal.pause()
    os.close(writer)
    hand = int(os.read(reader, 20))
    assert status(hand)["PPid"] == str(pid)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    assert os.read(reader, 1) == b""  # all that had it open have ended: the hand, and what forked it
    os.close(reader)
    until(lambda: not os.path.exists(f"/proc/{hand}") or status(hand)["State"].startswith("Z"), "the hand is gone")


def test_they_are_sealed_as_the_process_is(kernel: Kernel) -> None:
    most = max(map(int, os.listdir("/proc/self/fd"))) + 40

    def inside() -> list[dict[str, str]]:
        syscalls.prctl(syscalls.PR_SET_NO_NEW_PRIVS, 1)
        syscalls.prctl(syscalls.PR_SET_DUMPABLE, 0)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        found = [status(os.getpid())]

        def mine(start: int, end: int) -> bytes:
            limit = resource.getrlimit(resource.RLIMIT_NOFILE)
            seen = status(os.getpid())
            seen["limit"], seen["dumpable"] = str(limit), str(syscalls.prctl(syscalls.PR_GET_DUMPABLE))
            return json.dumps(seen).encode()

        with contextlib.closing(Hands(kernel, mine, (), 8)) as hands:
            answer = hands.do(0, 0)
        assert answer is not None
        found.append(json.loads(answer))
        return found

    worker, hand = run_forked(inside)
    kept = ["Uid", "Gid", "Groups", "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp"]
    kept += ["Cpus_allowed", "SigBlk"]
    assert {key: hand[key] for key in kept} == {key: worker[key] for key in kept}
    assert hand["NoNewPrivs"] == "1"
    assert (hand["limit"], hand["dumpable"]) == (f"({most}, {most})", "0")


def test_they_are_as_nice_and_on_the_same_cpus_as_the_thread_that_asks(kernel: Kernel) -> None:
    def seen(start: int, end: int) -> bytes:
        return b"%d %d %d" % (os.getpid(), os.getpriority(os.PRIO_PROCESS, 0), max(os.sched_getaffinity(0)))

    def inside() -> list[Any]:
        with contextlib.closing(Hands(kernel, seen, (), 8)) as hands:
            found = [answered(hands, 0, 0)]
            os.setpriority(os.PRIO_PROCESS, 0, 7)
            os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
            found.append(answered(hands, 0, 0))
            nicer = [each.nice for each in hands._idle]
            taken = hands._take(3)
            assert taken is not None
            found.append([taken.pid, *nicer])
            hands._idle.append(taken)
        return found

    (first, _, _), (second, nice, cpu), (third, *nicer) = run_forked(inside)
    assert first == second
    assert (nice, cpu) == (7, min(os.sched_getaffinity(0)))
    assert nicer == [7]
    assert third != first


def test_a_thread_leaves_idle_hands_to_threads_with_a_lower_nice_value(kernel: Kernel) -> None:
    def inside() -> list[Any]:
        with contextlib.closing(Hands(kernel, lambda start, end: b"%d" % os.getpid(), (), 8)) as hands:
            taken = [hands._take(nice) for nice in (0, 3, 5)]
            pids = [each.pid for each in taken if each is not None]
            for each, nice in zip(taken, (0, 3, 5), strict=True):
                assert each is not None
                each.nice = nice
                hands._idle.append(each)
            os.setpriority(os.PRIO_PROCESS, 0, 4)
            (found,) = answered(hands, 0, 0)
        return [pids.index(found), len(set(pids))]

    assert run_forked(inside) == [1, 3]


def test_a_process_with_threads_gets_none(kernel: Kernel) -> None:
    """A fork could copy a lock that another thread has."""
    never = threading.Event()
    thread = threading.Thread(target=never.wait)
    thread.start()
    try:
        with made(kernel, pid_and_sum) as hands:
            assert hands.do(1, 2) is None
    finally:
        never.set()
        thread.join()
