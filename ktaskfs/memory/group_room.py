"""Whether a task's pages fit into the limits of its control groups."""

from __future__ import annotations

import contextlib
import errno
import threading
from typing import TYPE_CHECKING, Final

from ktaskfs.errors import OutOfHugePages, TargetError
from ktaskfs.host.group_limits import memory_headroom, page_headroom
from ktaskfs.host.target import FilesystemType

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ktaskfs.host.kernel import Kernel
    from ktaskfs.host.target import Target

SPARE: Final = 4 << 20
"""Bytes reserved for the rest of the group and the worker itself. A guess: a worker takes 1 to 3 MiB."""


def group_refusal(kernel: Kernel, target: Target, pages: int, *, reserve: bool) -> OutOfHugePages | None:
    """The refusal if a control group cannot have this many more huge pages; with ``reserve``, cannot reserve them.

    Raises OSError.
    """
    headroom = page_headroom(kernel, target.page_size, reserve=reserve)
    if headroom is None or pages * target.page_size <= headroom.left:
        return None
    missing, room = headroom.beside(pages * target.page_size)
    return OutOfHugePages(f"{target.path}: {missing} of huge pages are missing, but {room}")


def require_group_memory(kernel: Kernel, target: Target, missing: int) -> None:
    """Raises TargetError (ENOMEM) if a control group cannot have this many more bytes of memory; OSError."""
    headroom = memory_headroom(kernel)
    if headroom is not None and missing + SPARE > headroom.left:
        size, room = headroom.beside(missing)
        raise TargetError(f"{target.path}: {size} are missing, but {room}", errno=errno.ENOMEM)


class GroupRoom:
    """Keeps the threads of a task within the memory limits of its control groups, for files of tmpfs.

    Past such a limit the kernel kills processes, perhaps others than the worker. Others can still take memory after the
    start of a chunk.
    """

    def __init__(self, kernel: Kernel, target: Target) -> None:
        self._kernel = kernel
        self._target = target
        self._on_tmpfs = target.filesystem is FilesystemType.TMPFS
        self._ended = threading.Condition()
        self._taking = 0  # bytes that running chunks may still take, or have just taken; guarded by _ended

    def _enter(self, size: int, *, alone: bool) -> bool:
        """Count a chunk of ``size`` bytes as running, if it fits; ``alone``: wait for the others' ends until it does.

        Raises TargetError (ENOMEM) if it does not fit even alone.
        """
        with self._ended:
            while size and (headroom := memory_headroom(self._kernel)) is not None:
                if self._taking + size + SPARE <= headroom.left:
                    break
                if not alone:
                    return False
                if not self._taking:
                    wanted, room = headroom.beside(size)
                    text = f"{self._target.path}: {wanted} of this chunk are missing, but {room}"
                    raise TargetError(text, errno=errno.ENOMEM)
                self._ended.wait()
            self._taking += size
        return True

    @contextlib.contextmanager
    def taking(self, at_most: int, missing: Callable[[], int]) -> Iterator[None]:
        """A chunk allocates ``at_most`` bytes in this context; ``missing`` finds how many it really does.

        Raises TargetError (ENOMEM), and as ``missing``, which is called only where ``at_most`` bytes do not fit. A
        chunk that does not fit beside the running ones waits for them: their pages count twice until they end.
        """
        size = at_most if self._on_tmpfs else 0
        if not self._enter(size, alone=False):
            size = missing()
            self._enter(size, alone=True)
        try:
            yield
        finally:
            with self._ended:
                self._taking -= size
                self._ended.notify_all()
