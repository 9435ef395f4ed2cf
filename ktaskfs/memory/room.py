"""Whether a range of a file of memory fits into the pool, the mount, the memory and the caller's limits."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
from typing import TYPE_CHECKING

from ktaskfs.errors import KtaskfsError, NotPermitted, OutOfHugePages, OutOfSpace, TargetError
from ktaskfs.host import syscalls
from ktaskfs.host.group_limits import memory_headroom
from ktaskfs.host.hugepages import free_on_own_nodes, pool_of
from ktaskfs.host.hugetlbfs import sets_aside
from ktaskfs.host.mapped_range import MappedRange
from ktaskfs.host.mapping import HoleGuard, Mapping
from ktaskfs.host.presence import data_extents, hole_extents, missing_pages
from ktaskfs.host.target import AbsentTarget, FilesystemType
from ktaskfs.memory.group_room import SPARE, group_refusal, require_group_memory
from ktaskfs.span import Span
from ktaskfs.units import SIZE_MAX, compared_sizes, format_size

if TYPE_CHECKING:
    from ktaskfs.host.kernel import Kernel
    from ktaskfs.host.target import Target


def _statistics(target: Target) -> os.statvfs_result | None:
    """statvfs(3) of the filesystem; None where a server of FUSE does not answer it. Raises OSError."""
    try:
        return os.fstatvfs(target.fd)
    except OSError as error:
        if error.errno != errno.ENOSYS:
            raise
        return None


def mount_room(target: Target) -> int | None:
    """Bytes of the filesystem that the caller may still use; None without a limit, or if it does not tell.

    Raises OSError.

    hugetlbfs has a limit with the option ``size=``. With only ``min_size=`` it reports -1 (hugetlbfs_statfs in
    fs/hugetlbfs/inode.c), and without either 0, like tmpfs without a limit. For root the blocks that ext4 keeps for
    root count, too; for root of a user namespace, and on btrfs, that may be too much.
    """
    mount = _statistics(target)
    if mount is None:
        return None
    free = mount.f_bavail if os.geteuid() else mount.f_bfree
    return free * mount.f_frsize if 0 < mount.f_blocks <= SIZE_MAX else None


def mount_inodes(target: Target) -> int | None:
    """As ``mount_room``, inodes that are still free; btrfs and vfat have no limit."""
    mount = _statistics(target)
    return mount.f_favail if mount is not None and 0 < mount.f_files <= SIZE_MAX else None


def too_few_pages(kernel: Kernel, target: Target, pages: int) -> KtaskfsError:
    """The refusal, with the limit that was hit: the mount's (its option ``size=``), the pool's, or the caller's own."""
    size = format_size(target.page_size)
    wanted = f"{target.path}: {pages} huge pages of {size} are needed, minus those it has"
    pool, room = pool_of(kernel, target.page_size), mount_room(target)
    left = None if room is None else room // target.page_size
    if left is not None and left < pages and (pool is None or pool.available > left):
        return OutOfSpace(f"{wanted}, but its filesystem has {left} left (its option size=)")
    if pool is None:
        return OutOfHugePages(wanted)
    if pages <= pool.available:
        refusal = group_refusal(kernel, target, pages, reserve=True) or nodes_refusal(kernel, target, pages)
        text = f"{wanted}; the pool has enough, so the limit on the worker's address space (RLIMIT_AS) stopped it"
        return refusal or TargetError(text, errno=errno.ENOMEM)
    return OutOfHugePages(f"{wanted}, but the pool has {pool.free} free of {pool.total}, with {pool.reserved} reserved")


def too_little_space(target: Target, wanted: int, room: int, what: str) -> OutOfSpace:
    """The refusal of ``wanted`` bytes, which ``what`` says more of, on a filesystem with ``room`` left."""
    size, left = compared_sizes(wanted, room)
    return OutOfSpace(f"{target.path}: {size} {what}, but its filesystem has {left} left")


def nodes_refusal(kernel: Kernel, target: Target, pages: int) -> OutOfHugePages | None:
    """The refusal if the pool has enough pages, but not on the caller's memory nodes (cpuset.mems).

    Raises OSError.
    """
    pool = pool_of(kernel, target.page_size)
    if pool is None or pages > pool.obtainable:
        return None
    try:
        nodes, free = free_on_own_nodes(kernel, target.page_size)
    except (NotPermitted, PermissionError):  # the caller's label hides them from the worker
        return None
    if pages <= free + pool.obtainable - pool.available:
        return None
    text = f"{pages} huge pages are needed, but your memory nodes ({nodes}) have {free} free"
    return OutOfHugePages(f"{target.path}: {text}")


def require_pool(kernel: Kernel, target: Target, pages: int, *, promised: bool) -> None:
    """Check that this many pages are possible, if they cannot be reserved now, or not released.

    Refuse only impossible requests: count all of the file's pages as in range and, where some may be ``promised`` to
    the file already, all reserved ones too. Raises OutOfHugePages, OutOfSpace or OSError.
    """
    pool, room = pool_of(kernel, target.page_size), mount_room(target)
    missing = pages - target.allocated() // target.page_size
    if promised:
        impossible = pool is not None and missing > pool.obtainable + pool.reserved
    else:
        over = room is not None and missing > room // target.page_size
        impossible = over or (
            pool is not None and missing > pool.obtainable and not _can_be_set_aside(kernel, target, missing)
        )
    if impossible:
        raise too_few_pages(kernel, target, pages)
    require_group_pages(kernel, target, pages, reserve=not promised)


def missing_bytes(target: Target, extent: Span) -> int:
    """Bytes of the missing whole pages of the extent, including those past the end of the file.

    Raises OSError. For hugetlbfs without userfaultfd(2) an estimate that is not too high.
    """
    if target.allocated() == 0:
        return extent.size
    if target.filesystem is not FilesystemType.HUGETLBFS:
        return sum(data - hole for hole, data in hole_extents(target.fd, extent.start, extent.end))
    known = extent.cut(Span(0, target.size()).widened(target.page_size))
    if known.size <= 0:
        return extent.size
    with contextlib.ExitStack() as stack:
        try:
            guard = HoleGuard()
            stack.callback(guard.close)
            pages = MappedRange(target.fd, known.start, known.end, target.page_size, guard)
        except OSError:
            return max(extent.size - target.allocated(), 0)
        stack.callback(pages.close)
        holes = missing_pages(pages, known.start, known.end, target.page_size)
        return extent.size - known.size + sum(end - start for start, end in holes)


def require_reservable(kernel: Kernel, target: Target, pages: int) -> None:
    """Check that this many more huge pages can be reserved; raises OutOfHugePages, OutOfSpace, OSError.

    The kernel does not report pages that are already reserved for the file.
    """
    pool, room = pool_of(kernel, target.page_size), mount_room(target)
    over = room is not None and pages > room // target.page_size
    short = pool is not None and pages > pool.obtainable and not _can_be_set_aside(kernel, target, pages)
    if over or short or not _has_addresses(pages * target.page_size):
        raise too_few_pages(kernel, target, pages)
    refusal = group_refusal(kernel, target, pages, reserve=target.size() == 0) or nodes_refusal(kernel, target, pages)
    if refusal is not None:
        raise refusal


def _has_addresses(size: int) -> bool:
    """Whether this process may map this many more bytes (RLIMIT_AS)."""
    try:
        if size:
            flags = syscalls.MAP_PRIVATE | syscalls.MAP_ANONYMOUS
            syscalls.munmap(syscalls.mmap(-1, 0, size, syscalls.PROT_READ, flags), size)
    except OSError as error:
        if error.errno != errno.ENOMEM:
            raise
        return False
    return True


def _can_be_set_aside(kernel: Kernel, target: Target, pages: int) -> bool:
    """Whether the kernel would reserve this many huge pages now: a mount with ``min_size=`` has its own.

    A private read mapping reserves all of its pages, and releases them; it does not extend the file.
    """
    with contextlib.ExitStack() as stack:
        fd = target.fd
        if isinstance(target, AbsentTarget):  # a file without a name stands for it
            try:
                if not sets_aside(kernel, os.fstat(fd).st_dev):  # else the directory's times stay as they are
                    return False
                fd = os.open(".", os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600, dir_fd=fd)
            except OSError:  # whatever the reason, a file could not be made either
                return False
            stack.callback(os.close, fd)
        try:
            Mapping(fd, 0, pages * target.page_size, reserve=True, private=True).close()
        except OSError as error:
            if error.errno != errno.ENOMEM:
                raise
            return False
    return True


def require_group_pages(kernel: Kernel, target: Target, pages: int, *, reserve: bool = False) -> None:
    """Raises OutOfHugePages if the control groups cannot have this many pages, minus those of the file.

    The kernel checks only when it charges the page past the limit, long after it has reserved all. With ``reserve``,
    limits on reservations count, too, which the kernel checks when it reserves.
    """
    refusal = group_refusal(kernel, target, pages - target.allocated() // target.page_size, reserve=reserve)
    if refusal is not None:
        raise refusal


def require_file_size(target: Target, end: int, *, written: bool = False) -> None:
    """Raises OSError (EFBIG) past the caller's RLIMIT_FSIZE, like ftruncate(2): only if the file is shorter.

    With ``written``, like write(2): for any size. Extending a file of hugetlbfs by mapping it checks nothing.
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

    Others may take the space before the work: tmpfs cannot reserve.
    """
    room, memory = mount_room(target), available_memory(kernel)
    space = SIZE_MAX if room is None else room
    if extent.size <= min(space, memory):
        return
    missing = missing_bytes(target, extent)
    if target.allocated():
        data = sum(hole - data for data, hole in data_extents(target.fd, 0, target.size()))
        # Bytes that were allocated but never written, anywhere; counted as in range, so that no refusal is wrong.
        missing -= max(0, target.allocated() - data)
    if missing > space:
        raise too_little_space(target, missing, space, "are missing")
    if missing > memory:
        require_group_memory(kernel, target, missing)
        wanted, left = compared_sizes(missing, memory)
        text = f"{target.path}: {wanted} are missing, but {left} of memory are available"
        raise TargetError(text, errno=errno.ENOMEM)
