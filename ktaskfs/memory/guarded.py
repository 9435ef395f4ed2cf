"""A range of a file of memory whose holes show, or a refusal."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ktaskfs.errors import NotSupported, TargetError
from ktaskfs.host.mapped_range import MappedRange
from ktaskfs.host.mapping import HoleGuard

if TYPE_CHECKING:
    from ktaskfs.host.target import Target
    from ktaskfs.span import Span


@dataclass(frozen=True)
class GuardedPages:
    """What shows the holes of a range: its pages, mapped; no ``guard``: there are no holes."""

    guard: HoleGuard | None
    pages: MappedRange

    def close(self) -> None:
        """Unmap and close."""
        self.pages.close()
        if self.guard is not None:
            self.guard.close()


def require_guard(target: Target) -> HoleGuard:
    """A guard for whoever looks at pages one by one; raises NotSupported where a seccomp filter allows none."""
    try:
        return HoleGuard()
    except OSError as error:
        raise NotSupported(
            f"without userfaultfd ({error.strerror}) looking at {target.path} could fill its holes"
        ) from error


def guarded_pages(target: Target, extent: Span, *, private: bool = False) -> GuardedPages:
    """The pages of ``extent``, to be written, or ``private``, to be looked at.

    Raises NotSupported for a file with holes where none can be guarded, and TargetError.
    """
    guard = _guard(target)
    whole = extent.widened(target.page_size)
    try:
        return GuardedPages(
            guard, MappedRange(target.fd, whole.start, whole.end, target.page_size, guard, private=private)
        )
    except OSError as error:
        if guard is not None:
            guard.close()
        raise TargetError.from_os(error, f"map {target.path}") from error


def _guard(target: Target) -> HoleGuard | None:
    """A guard; None where none is allowed (a seccomp filter) and the file has no holes to be guarded."""
    try:
        return HoleGuard()
    except OSError as error:
        if target.allocated() >= target.size():
            return None
        raise NotSupported(
            f"{target.path} has holes, and without userfaultfd ({error.strerror}) they would be filled"
        ) from error
