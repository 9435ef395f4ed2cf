"""select(2), poll(2) and epoll(7) on real descriptors."""

from __future__ import annotations

import os
import select
from contextlib import ExitStack
from typing import TYPE_CHECKING

from tests.support.poll import DEADLINE

if TYPE_CHECKING:
    from tests.fuse.conftest import Example

ALWAYS = select.POLLIN | select.POLLOUT
CHANGED = select.POLLPRI | select.POLLERR


def opened(stack: ExitStack, example: Example, name: str, flags: int = os.O_RDONLY) -> int:
    fd = os.open(example.path / name, flags)
    stack.callback(os.close, fd)
    return fd


def polled(fd: int, seconds: float) -> int:
    poll = select.poll()
    poll.register(fd, select.POLLPRI)
    return dict(poll.poll(seconds * 1000)).get(fd, 0)


def test_poll_wakes_once_for_each_change_since_the_last_read_from_the_start(example: Example) -> None:
    with ExitStack() as stack:
        fd = opened(stack, example, "number")
        assert polled(fd, 0) == CHANGED  # never read
        assert os.pread(fd, 100, 0) == b"7\n"
        assert polled(fd, 0) == 0
        writer = example.start("until grep -q 'waiting\": 1' counts; do :; done; echo 8 > number")
        assert polled(fd, DEADLINE) == CHANGED
        assert writer.wait() == 0
        assert polled(fd, 0) == CHANGED
        os.pread(fd, 1, 1)
        assert polled(fd, 0) == CHANGED
        assert os.pread(fd, 100, 0) == b"8\n"
        assert polled(fd, 0) == 0


def test_select_reports_a_change_as_exceptional(example: Example) -> None:
    with ExitStack() as stack:
        fd = opened(stack, example, "number")
        os.pread(fd, 100, 0)
        assert select.select([], [], [fd], 0) == ([], [], [])
        example.shell("echo 8 > number")
        assert select.select([], [], [fd], DEADLINE) == ([], [], [fd])


def test_two_watchers_are_both_woken(example: Example) -> None:
    with ExitStack() as stack:
        fds = [opened(stack, example, "number") for _ in range(2)]
        epolls = []
        for fd in fds:
            os.pread(fd, 100, 0)
            epolls.append(stack.enter_context(select.epoll()))
            epolls[-1].register(fd, select.EPOLLPRI)
        assert [epoll.poll(0) for epoll in epolls] == [[], []]
        example.shell("echo 8 > number")
        for fd, epoll in zip(fds, epolls, strict=True):
            assert epoll.poll(DEADLINE) == [(fd, CHANGED)]
            os.pread(fd, 100, 0)
            assert epoll.poll(0) == []


def test_two_epolls_on_one_descriptor_are_both_woken(example: Example) -> None:
    with ExitStack() as stack:
        fd = opened(stack, example, "number")
        os.pread(fd, 100, 0)
        epolls = [stack.enter_context(select.epoll()) for _ in range(2)]
        for epoll in epolls:
            epoll.register(fd, select.EPOLLPRI)
        example.shell("echo 8 > number")
        assert [epoll.poll(DEADLINE) for epoll in epolls] == [[(fd, CHANGED)]] * 2


def test_edge_triggered_epoll_reports_every_change_without_a_read(example: Example) -> None:
    with ExitStack() as stack:
        fd = opened(stack, example, "number")
        os.pread(fd, 100, 0)
        epoll = stack.enter_context(select.epoll())
        epoll.register(fd, select.EPOLLPRI | select.EPOLLET)
        for number in range(5):
            example.shell(f"echo {number} > number")
            assert epoll.poll(DEADLINE) == [(fd, CHANGED)]
            assert epoll.poll(0) == []


def test_files_that_report_no_changes_are_always_ready(example: Example) -> None:
    with ExitStack() as stack:
        fd = opened(stack, example, "hello")
        poll = select.poll()
        poll.register(fd, ALWAYS | select.POLLPRI)
        assert dict(poll.poll(0)) == {fd: ALWAYS}


def test_a_stream_is_readable_when_it_has_something(example: Example) -> None:
    with ExitStack() as stack:
        fd = opened(stack, example, "ticks", os.O_RDONLY | os.O_NONBLOCK)
        epoll = stack.enter_context(select.epoll())
        epoll.register(fd, select.EPOLLIN)
        for number in range(5):
            assert epoll.poll(0) == []
            example.shell(f"echo {number} > number")
            assert epoll.poll(DEADLINE) == [(fd, select.EPOLLIN)]
            assert os.read(fd, 100) == f"{number}\n".encode()


def test_a_descriptor_closed_while_it_waits_leaves_nothing(example: Example) -> None:
    with ExitStack() as stack:
        epoll = stack.enter_context(select.epoll())
        for _ in range(100):
            fd = os.open(example.path / "number", os.O_RDONLY)
            epoll.register(fd, select.EPOLLPRI)
            os.pread(fd, 100, 0)
            epoll.poll(0)
            os.close(fd)
    assert example.shell("until grep -q 'waiting\": 0' counts; do :; done; echo 8 > number").status == 0
