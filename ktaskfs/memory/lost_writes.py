"""Errors of writes that the system reports late: those of NFS and FUSE at close(2)."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING

from ktaskfs.errors import TargetError
from ktaskfs.host.target import FilesystemType

if TYPE_CHECKING:
    from ktaskfs.host.target import Target


class LostWrites:
    """What the filesystem of ``target`` could not write, for all threads of a task."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._lock = threading.Lock()
        self._error: TargetError | None = None  # guarded by _lock

    def require_none(self) -> None:
        """Raises TargetError if the data written so far was lost.

        The system reports that once, to any thread, whoever wrote the data; so from then on it is raised every time.
        """
        if self._target.filesystem is not FilesystemType.OTHER:
            return
        with self._lock:
            if self._error is None:
                try:
                    os.close(os.dup(self._target.fd))
                except OSError as error:
                    self._error = TargetError.from_os(error, f"write {self._target.path}")
            if self._error is not None:
                raise self._error
