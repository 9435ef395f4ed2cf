"""Runs a part of a test in a separate process, which may change its user and root directory."""

from __future__ import annotations

import json
import os
import traceback
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable


class Died(AssertionError):
    """The child ended without an answer; ``status`` is from waitpid(2)."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(f"status {status}: {text}")
        self.status = status


def run_forked(function: Callable[[], Any]) -> Any:
    """The result of ``function`` in a forked child, passed as JSON; raises Died with the child's traceback."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        status = 1
        try:
            answer = json.dumps(function())
            status = 0
        except BaseException:
            answer = traceback.format_exc()
        try:
            os.write(writer, answer.encode())
        finally:  # never return into the test
            os._exit(status)
    os.close(writer)
    with open(reader, "rb") as file:
        text = file.read().decode()
    _, status = os.waitpid(pid, 0)
    if status != 0:
        raise Died(status, text)
    return json.loads(text)
