"""What a forked process keeps."""

from __future__ import annotations

import os

import pytest

from ktaskfs import descriptors
from tests.support.forked import run_forked


@pytest.mark.parametrize("number", [None, "EPERM", "ENOSYS"])
def test_all_but_some_are_closed(monkeypatch: pytest.MonkeyPatch, number: str | None) -> None:
    """Also where a kernel or a filter does not know the call."""

    def refuse(first: int, last: int) -> None:
        raise OSError(number)

    if number is not None:
        monkeypatch.setattr(descriptors, "_close_range", refuse)

    def kept() -> list[bool]:
        answer, first, closed, high = os.dup(1), os.dup(0), os.dup(0), os.dup2(0, 7000)
        descriptors.close_all_but({answer, high, first} | set(pipes()))
        return [_is_open(fd) for fd in (0, 1, 2, answer, first, closed, high, high + 1)]

    def pipes() -> list[int]:
        """That of run_forked, on which the answer goes, is one of them."""
        there = {fd: os.readlink(f"/proc/self/fd/{fd}") for fd in map(int, os.listdir("/proc/self/fd")) if _is_open(fd)}
        return [fd for fd, name in there.items() if name.startswith("pipe:")]

    assert run_forked(kept) == [True] * 5 + [False, True, False]


def _is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True
