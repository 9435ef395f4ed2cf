"""The errors of a task on a file of memory, and the meaning of an errno there."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

from ktaskfs.errors import KtaskfsError, TargetError
from ktaskfs.host.hugepages import pool_of
from ktaskfs.host.target import SEAL_FUTURE_WRITE, SEAL_WRITE, FilesystemType
from ktaskfs.memory.group_room import group_refusal
from ktaskfs.memory.room import mount_room, nodes_refusal
from ktaskfs.units import format_size

if TYPE_CHECKING:
    from ktaskfs.host.kernel import Kernel
    from ktaskfs.host.target import Target


def truncated(target: Target) -> TargetError:
    """The file became shorter than the range during the work (ENXIO, like lseek(2) past the end)."""
    return TargetError(f"{target.path} was truncated to {target.size()} bytes during the work", errno=errno.ENXIO)


def file_ended(target: Target, position: int) -> TargetError:
    """The file ended at ``position`` of the range, maybe before its size, like files of sysfs (ENXIO)."""
    size = target.size()
    if size <= position:
        return truncated(target)
    return TargetError(f"{target.path} ends at {position}, before its size of {size} bytes", errno=errno.ENXIO)


def page_unavailable(kernel: Kernel, target: Target, error: OSError, end: int) -> KtaskfsError:
    """The error for a page before ``end`` that could not be allocated: distinguishes the reasons for the kernel's
    EFAULT."""
    if error.errno == errno.EFAULT and target.size() < end:
        return truncated(target)
    if error.errno in (errno.EFAULT, errno.ENOSPC):
        if target.filesystem is FilesystemType.HUGETLBFS:
            refusal = group_refusal(kernel, target, 1, reserve=False) or nodes_refusal(kernel, target, 1)
            if refusal is not None:
                return refusal
            size, pool, room = format_size(target.page_size), pool_of(kernel, target.page_size), mount_room(target)
            if room is not None and room < target.page_size and pool is not None and pool.available:
                text = f"{target.path}: its filesystem has no huge page left (its option size=)"
                return TargetError(text, errno=errno.ENOSPC)
            return TargetError(f"{target.path}: the pool has no free huge page of {size} left", errno=errno.ENOMEM)
        return TargetError(f"{target.path}: the filesystem has no free page left", errno=errno.ENOSPC)
    return TargetError.from_os(error, f"allocate pages of {target.path}")


def require_unsealed(target: Target, seals: int) -> None:
    """Raises TargetError (EPERM) for a memfd that carries one of ``seals``, or is sealed against writing."""
    if target.seals() & (seals | SEAL_WRITE | SEAL_FUTURE_WRITE):
        raise TargetError(f"{target.path} is sealed: {os.strerror(errno.EPERM)}", errno=errno.EPERM)
