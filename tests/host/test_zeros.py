"""The source of zeros."""

from __future__ import annotations

import os
import resource
from typing import TYPE_CHECKING

from ktaskfs.host.kernel import Kernel
from ktaskfs.host.zeros import HOLE, Zeros
from tests.support.forked import run_forked

if TYPE_CHECKING:
    import pytest


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_it_is_a_hole_that_stays_one() -> None:
    kernel = Kernel.open()
    before = open_files()
    zeros = Zeros.open(kernel)
    assert zeros.length == HOLE
    buffer = bytearray(b"x" * (5 << 20))
    for offset in (0, 12345, HOLE - len(buffer)):
        buffer[:] = b"x" * len(buffer)
        assert os.preadv(zeros.fd, [buffer], offset) == len(buffer)
        assert not any(buffer)
    assert os.fstat(zeros.fd).st_blocks == 0
    zeros.close()
    assert open_files() == before
    kernel.close()


def test_without_huge_pages_it_is_dev_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = Kernel.open()
    monkeypatch.setattr(os, "MFD_HUGETLB", 1 << 20)  # as a kernel that does not know the flag: EINVAL
    zeros = Zeros.open(kernel)
    assert zeros.length is None
    assert os.read(zeros.fd, 10) == bytes(10)
    zeros.close()
    kernel.close()


def test_where_files_may_not_be_that_long_it_is_dev_zero() -> None:
    def look() -> list[int]:
        _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
        kernel = Kernel.open()
        before = open_files()
        zeros = Zeros.open(kernel)
        return [zeros.length is None, open_files() - before]

    assert run_forked(look) == [True, 1]
