"""Threads of the event loop: what happens without one."""

from __future__ import annotations

import errno
import threading

import pytest

from ktaskfs.user_threads import NoThread, in_thread


def _fail() -> None:
    raise RuntimeError("of the function")


async def test_the_result_and_the_errors_are_those_of_the_function() -> None:
    assert await in_thread(divmod, 7, 2) == (3, 1)
    with pytest.raises(RuntimeError, match="of the function"):
        await in_thread(_fail)


async def test_without_a_thread_it_is_refused(no_threads: None) -> None:
    with pytest.raises(NoThread) as refused:
        await in_thread(threading.get_ident)
    assert refused.value.errno == errno.EAGAIN
