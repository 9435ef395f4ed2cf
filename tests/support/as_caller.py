"""Functions run as an ordinary user in a root directory of his own, as a worker runs."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from ktaskfs.host.becoming import become
from ktaskfs.host.credentials import Identity, read_caller
from tests.support.forked import run_forked

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

NOBODY = 65534
MEMORY_LIMIT = 25 << 20
"""Bytes of anonymous memory that a worker may have."""


def as_nobody(root: Path, function: Callable[[], Any]) -> Any:
    """The result of ``function`` in a process of user nobody whose root directory is ``root``."""
    caller = read_caller(os.getpid(), os.geteuid(), os.getegid())
    identity = Identity.from_fields(
        caller.identity.to_fields()
        | {"uid": NOBODY, "gid": NOBODY, "groups": [], "effective": 0, "permitted": 0, "bounding": 0}
    )
    directory = os.open(root, os.O_PATH)

    def body() -> Any:
        become(identity, directory, directory)
        return function()

    try:
        return run_forked(body)
    finally:
        os.close(directory)
        caller.close()
