"""Finding a process among the children of another."""

from __future__ import annotations

import contextlib

import psutil


def child_called(parent: int, word: str) -> psutil.Process:
    """The one living child of ``parent`` whose command line has ``word`` in it; the dead ones have none."""
    found = []
    for child in psutil.Process(parent).children():
        with contextlib.suppress(psutil.NoSuchProcess):  # a zombie, too
            if word in " ".join(child.cmdline()):
                found.append(child)
    (only,) = found
    return only
