"""Processes that are looked at or worked on, and do something when they are told to."""

from __future__ import annotations

import subprocess
import sys


class AnsweringProcess:
    """A Python program that prints a line when it is ready, and one more for each line of input.

    ``greeting`` is the first line. ``close`` ends the process.
    """

    def __init__(self, program: str, *arguments: object) -> None:
        command = [sys.executable, "-c", program, *map(str, arguments)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.pid = self._process.pid
        self.greeting = self._answer()

    def ask(self) -> str:
        """Send it a line, and return its answer."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline()

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()
