# Copyright (c) 2026, The ktaskfs authors
# SPDX-License-Identifier: MIT
"""Checks whether the work of a done task still exists."""

from __future__ import annotations

import errno
import os
import subprocess
from typing import TYPE_CHECKING

from ansible_collections.ktaskfs.host.plugins.module_utils.mounted import Refused

if TYPE_CHECKING:
    from ansible_collections.ktaskfs.host.plugins.module_utils.request import Request

PLANNED = ("fallocate", "reserve")
"""Operations whose plan shows the missing part of their work."""
SECOND = 10**9


def is_lost(request: Request) -> bool:
    """Whether a done task must be done again.

    Memory and pools are lost if a new start would find something to do. A copy is lost if its file is gone or has
    become smaller. All work except memory is lost if another file has replaced one of its files. If the file of such
    work is gone, nothing must be done.
    """
    if request.wanted.op in PLANNED:
        return _has_work(request)
    figures = request.mounted.figures(request.wanted.name)
    files = {key: value for key, value in figures.get("files", {}).items() if key in request.values and key != "pid"}
    if any(_is_another(request.values[key], *identity) for key, identity in files.items()):
        return True
    return request.wanted.op == "copy" and _is_short(request, figures.get("total") or 0)


def _has_work(request: Request) -> bool:
    try:
        plan = request.plan()
    except Refused as error:
        if error.number == errno.EAGAIN:  # the user has as many tasks as may be
            raise
        return True  # a start is refused for the same reason, and says it
    missing = plan.get("total", "0") if request.wanted.op == "reserve" else plan.get("allocates", "0")
    return missing != "0" or "creates" in plan or "extends_to" in plan


def _is_another(path: str, device: int, inode: int, born: int) -> bool:
    """Whether a file at ``path`` exists and has another identity; ``born`` is in nanoseconds."""
    try:
        now = os.stat(path)
    except OSError:
        return False
    return (now.st_dev, now.st_ino) != (device, inode) or (born != 0 and _birth(path) not in (0, born // SECOND))


def _birth(path: str) -> int:
    """Returns the birth time of a file in whole seconds since the epoch; 0 if it is unknown.

    It comes from stat(1), because the module os does not have it.
    """
    words = ["stat", "--dereference", "--format=%W", "--", path]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    text = done.stdout.strip()
    return int(text) if text.isdigit() else 0


def _is_short(request: Request, total: int) -> bool:
    """Whether the copy is gone, is smaller than the copied range, or has lost all its pages."""
    path = request.values["path"]
    try:
        now = os.stat(path)
    except OSError:
        return True
    if not os.path.isfile(path):
        return False
    end = request.number("offset") + total
    keeps_size = request.values.get("keep_size") == "1"
    return (now.st_size < end and not keeps_size) or (total > 0 and now.st_blocks == 0)
