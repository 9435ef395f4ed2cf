"""Pages of progress for a small task, and the remaining work that they show."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING

from ktaskfs.progress import Requests, Shape, create_page
from ktaskfs.span import Node

if TYPE_CHECKING:
    from collections.abc import Sequence

SHAPE = Shape(slots=3, nodes=4)
NODES = [Node(100, 10, 0), Node(110, 7, -1)]
ALL = set(range(100, 117))


def units(nodes: Sequence[Node]) -> list[int]:
    """Every unit of ``nodes``; none may be named twice."""
    found = [unit for node in nodes for unit in range(node.start, node.end)]
    assert len(found) == len(set(found))
    return found


def new_page() -> int:
    """An open page of SHAPE that has no name any more."""
    fd = os.memfd_create("page")
    os.close(fd)
    path = f"/dev/shm/ktask-page-{os.getpid()}-{threading.get_native_id()}"
    fd = create_page(path, SHAPE, Requests())
    os.unlink(path)
    return fd
