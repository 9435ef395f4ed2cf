"""A range of a file of memory whose holes show, or a refusal."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ktaskfs.errors import NotSupported, TargetError
from ktaskfs.host.mapping import HoleGuard
from ktaskfs.host.presence import GuardedRange
from ktaskfs.host.target import Kind, Target

if TYPE_CHECKING:
    from ktaskfs.operations.extent import Extent


@dataclass(frozen=True)
class GuardedPages:
    """What shows the holes of a range. ``pages`` is set for hugetlbfs; no ``guard``: there are no holes."""

    guard: HoleGuard | None
    pages: GuardedRange | None

    def close(self) -> None:
        """Unmap and close."""
        if self.pages is not None:
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


def guarded_pages(target: Target, extent: Extent) -> GuardedPages:
    """The pages of ``extent``; raises NotSupported for a file with holes where none can be guarded, and TargetError."""
    guard = _guard(target)
    if target.kind is not Kind.HUGETLBFS:
        return GuardedPages(guard, None)
    whole = extent.widened(target.page_size)
    try:
        return GuardedPages(guard, GuardedRange(target.fd, whole.start, whole.end, target.page_size, guard))
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
