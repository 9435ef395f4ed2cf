"""Whether a range of a file of memory fits into the pool, the mount, the memory and the caller's limits."""

from __future__ import annotations

import errno
import os
import resource
from typing import TYPE_CHECKING

from ktaskfs.errors import KtaskfsError, OutOfHugePages, OutOfSpace, TargetError
from ktaskfs.host.group_limits import memory_headroom
from ktaskfs.host.hugepages import pool_of
from ktaskfs.host.presence import data_extents, hole_extents
from ktaskfs.memory.group_room import SPARE, group_refusal, require_group_memory
from ktaskfs.units import SIZE_MAX, format_size

if TYPE_CHECKING:
    from ktaskfs.host.kernel import Kernel
    from ktaskfs.host.target import Target
    from ktaskfs.span import Span


def too_few_pages(kernel: Kernel, target: Target, pages: int) -> KtaskfsError:
    """The refusal, with the limit that was hit: the mount's (its option ``size=``), the pool's, or the worker's own."""
    size = format_size(target.page_size)
    mount = os.fstatvfs(target.fd)
    wanted = f"{target.path}: {pages} huge pages of {size} are wanted, less those it has already"
    pool = pool_of(kernel, target.page_size)
    if mount.f_blocks and mount.f_bavail < pages and (pool is None or pool.available > mount.f_bavail):
        return OutOfSpace(f"{wanted}, and its filesystem has {mount.f_bavail} left")
    if pool is None:
        return OutOfHugePages(wanted)
    if pages <= pool.available:
        text = f"{wanted}; the pool has enough, so it was a limit on the worker's address space (RLIMIT_AS)"
        return group_refusal(kernel, target, pages, reserve=True) or TargetError(text, errno=errno.ENOMEM)
    return OutOfHugePages(
        f"{wanted}, and of the pool's {pool.total} there are {pool.free} free, {pool.reserved} of those reserved"
    )


def require_pool(kernel: Kernel, target: Target, pages: int, *, promised: bool) -> None:
    """Check that so many pages are possible, where they cannot be reserved at once, or not be given back.

    Refuse only impossible requests: count all of the file's pages as in range and, where some may be ``promised`` to
    the file already, all reserved ones too. Raises OutOfHugePages or OutOfSpace.
    """
    pool = pool_of(kernel, target.page_size)
    missing = pages - target.allocated() // target.page_size
    if pool is not None and missing > pool.obtainable + (pool.reserved if promised else 0):
        raise too_few_pages(kernel, target, pages)
    require_group_pages(kernel, target, pages)


def require_group_pages(kernel: Kernel, target: Target, pages: int) -> None:
    """Raises OutOfHugePages if the control groups cannot have so many pages, less those that the file has.

    The kernel itself would find out only when it charges the page past the limit, long after it has reserved all.
    """
    refusal = group_refusal(kernel, target, pages - target.allocated() // target.page_size, reserve=False)
    if refusal is not None:
        raise refusal


def require_file_size(target: Target, end: int, *, written: bool = False) -> None:
    """Raises OSError (EFBIG) past the caller's RLIMIT_FSIZE, as ftruncate(2) would: only if the file is shorter.

    With ``written``, as write(2) would: whatever its size. Extending a file of hugetlbfs by mapping it checks nothing.
    """
    limit, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    if limit != resource.RLIM_INFINITY and end > (limit if written else max(limit, target.size())):
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))


def available_memory(kernel: Kernel) -> int:
    """Bytes of memory that the machine, and the control groups, have for a file of tmpfs; raises OSError."""
    headroom = memory_headroom(kernel)
    machine = kernel.available_memory()
    return machine if headroom is None else min(machine, headroom.left - SPARE)


def require_space(kernel: Kernel, target: Target, extent: Span) -> None:
    """Raises OutOfSpace or TargetError (ENOMEM) if the missing pages cannot fit.

    Others may take the space meanwhile: tmpfs cannot reserve.
    """
    mount = os.fstatvfs(target.fd)
    space = mount.f_bavail * mount.f_frsize if mount.f_blocks else SIZE_MAX
    memory = available_memory(kernel)
    if extent.size <= min(space, memory):
        return
    data = sum(hole - data for data, hole in data_extents(target.fd, 0, target.size()))
    unwritten = max(0, target.allocated() - data)
    """Bytes allocated and never written, wherever they are; counted as in range, so that no refusal is wrong."""
    missing = sum(data - hole for hole, data in hole_extents(target.fd, extent.start, extent.end)) - unwritten
    if missing > space:
        raise OutOfSpace(f"{target.path}: {missing} bytes are missing, and its filesystem has {space} left")
    if missing > memory:
        require_group_memory(kernel, target, missing)
        raise TargetError(
            f"{target.path}: {missing} bytes are missing, and {memory} bytes of memory are available",
            errno=errno.ENOMEM,
        )
