"""A mapped range of a file of memory in which holes are detected and never filled."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from ktaskfs.errors import NotSupported, TargetError
from ktaskfs.host.mapped_range import MappedRange
from ktaskfs.host.mapping import HoleGuard

if TYPE_CHECKING:
    from ktaskfs.host.target import Target
    from ktaskfs.span import Span


class GuardedPages(NamedTuple):
    """The pages of a range, mapped under a HoleGuard. ``guard`` is None if the file has no holes."""

    guard: HoleGuard | None
    pages: MappedRange

    def close(self) -> None:
        """Unmap and close."""
        self.pages.close()
        if self.guard is not None:
            self.guard.close()


def require_guard(target: Target) -> HoleGuard:
    """A guard for examining single pages; raises NotSupported if a seccomp filter forbids it."""
    try:
        return HoleGuard()
    except OSError as error:
        raise NotSupported(
            f"without userfaultfd ({error.strerror}) reading {target.path} could fill its holes"
        ) from error


def guarded_pages(target: Target, extent: Span, *, private: bool = False) -> GuardedPages:
    """The pages of ``extent``, writable, or with ``private`` read-only.

    Raises NotSupported for a file with holes if a seccomp filter forbids a guard, and TargetError.
    """
    guard = _guard(target)
    try:
        return map_guarded(target, extent.widened(target.page_size), guard, private=private)
    except OSError as error:
        raise TargetError.from_os(error, f"map {target.path}") from error


def map_guarded(target: Target, extent: Span, guard: HoleGuard | None, *, private: bool = False) -> GuardedPages:
    """Map whole pages under ``guard``, which is closed with them, or if this fails. Raises OSError."""
    try:
        pages = MappedRange(target.fd, extent.start, extent.end, target.page_size, guard, private=private)
    except BaseException:
        if guard is not None:
            guard.close()
        raise
    return GuardedPages(guard, pages)


def _guard(target: Target) -> HoleGuard | None:
    """A guard; None if a seccomp filter forbids it and the file has no holes."""
    try:
        return HoleGuard()
    except OSError as error:
        if target.allocated() >= target.size():
            return None
        raise NotSupported(
            f"{target.path} has holes, which reads would fill without userfaultfd ({error.strerror})"
        ) from error
