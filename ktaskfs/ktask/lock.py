"""The framework's lock, which no interrupt leaves locked."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:

    class RLock:  # typeshed calls it final, CPython does not
        """The reentrant lock of ``threading``, in C."""

        def acquire(self, blocking: bool = ...) -> bool: ...
        def release(self) -> None: ...
        def __exit__(self, *error: object) -> None: ...
else:
    from _thread import RLock


class OwnedLock(RLock):
    """A lock that knows its owner, for ``with``: it is free even if a signal handler raises at its entry.

    Python runs the handlers of signals at the return from a call, among other places. From 3.14 on it calls a lock's
    ``__enter__`` in that way, so an exception may come after the lock was taken and before the block whose end would
    give it back. The end has no such gap: ``__exit__`` is the base class's, which is in C.

    Do not take it twice in one thread: an interrupt at the inner entry would give it back for both.
    """

    __slots__ = ()

    def __enter__(self) -> bool:
        try:
            return self.acquire()
        except BaseException:
            # No handler runs between the exception and this call, so the lock is free however many come.
            try:
                self.release()
            except RuntimeError:
                pass  # it was not taken: the wait for it was interrupted
            finally:
                raise
