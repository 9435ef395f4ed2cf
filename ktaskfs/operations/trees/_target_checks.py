"""Checks before a tree is copied: the place, the room there, and what an earlier run has done."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from typing import TYPE_CHECKING, Final

from ktaskfs.errors import InvalidValue, NotSupported, OutOfHugePages, OutOfSpace, TargetError
from ktaskfs.host.hugepages import pool_of
from ktaskfs.host.presence import gaps
from ktaskfs.host.target import FilesystemType, directory_as_target, open_target, require_creatable
from ktaskfs.memory.group_room import group_refusal
from ktaskfs.memory.room import (
    mount_inodes,
    mount_room,
    nodes_refusal,
    require_reservable,
    require_space,
    too_few_pages,
    too_little_space,
)
from ktaskfs.span import Span

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from ktaskfs.errors import KtaskfsError
    from ktaskfs.host.kernel import Kernel
    from ktaskfs.host.target import Target
    from ktaskfs.operations.trees._files import FileList
    from ktaskfs.span import Node

_COPIED: Final = frozenset({stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK})


def require_usable(kernel: Kernel, target: Target, *, empty: bool) -> None:
    """Raises TargetError for an unwritable directory, and, if ``empty`` is wanted, for a directory with entries."""
    path = target.path
    try:
        fd = kernel.reopen(target.fd, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise TargetError(f"{path} cannot be read: {os.strerror(error.errno or 0)}", errno=error.errno) from error
    try:
        try:
            require_creatable(fd, target.filesystem)
        except OSError as error:
            raise TargetError.from_os(error, f"cannot create anything in {path}") from error
        with os.scandir(fd) as entries:
            if empty and next(entries, None) is not None:
                raise TargetError(f"{path} is not empty; a tree is copied into a new directory", errno=errno.ENOTEMPTY)
    finally:
        os.close(fd)


def require_apart(source: int, path: str) -> None:
    """Raises InvalidValue if ``path``, which may be missing, lies in the directory ``source``."""
    inner = os.fstat(source)
    for each in _above(path):
        if os.path.samestat(each, inner):
            raise InvalidValue(f"{path} lies inside the source directory")


def _above(path: str) -> Iterator[os.stat_result]:
    """The parents of an existing or new ``path``, up to the root."""
    here = os.path.realpath(path)
    while True:
        with contextlib.suppress(OSError):  # it is missing, or a later open reports the error
            yield os.stat(here)
        if here == "/":
            return
        here = os.path.dirname(here)


def require_room(kernel: Kernel, files: FileList, target: Target, *, new: int = 0) -> None:
    """An estimate, with ``new`` more directories; raises OutOfSpace, OutOfHugePages, NotSupported, TargetError."""
    huge = target.filesystem is FilesystemType.HUGETLBFS
    try:
        if huge and any(files.kind(index) == stat.S_IFLNK for index in range(len(files))):
            raise NotSupported(f"{target.path}: hugetlbfs takes no links; links=1 copies their targets")
        _require_inodes(files, target, new)
        try:
            _require_bytes(kernel, target, files.bytes_in(target.page_size) if huge else files.allocated)
        except (OutOfHugePages, OutOfSpace, TargetError):  # holes and unwritten blocks were counted: look at each file
            _require_bytes(kernel, target, files.data_bytes_in(target.page_size))
    except OSError as error:
        raise TargetError.from_os(error, f"find the free space of {target.path}") from error


def _require_inodes(files: FileList, target: Target, new: int) -> None:
    left = mount_inodes(target)
    if left is None or new + len(files) <= left:
        return
    wanted = new + sum(files.kind(index) in _COPIED for index in range(len(files)))
    if wanted > left:
        words = f"{wanted} files and directories must be made, but its filesystem has {left} inodes left"
        raise OutOfSpace(f"{target.path}: {words}")


def _require_bytes(kernel: Kernel, target: Target, size: int) -> None:
    if target.filesystem is FilesystemType.HUGETLBFS:
        require_reservable(kernel, target, size // target.page_size)
    elif target.filesystem is FilesystemType.TMPFS:
        require_space(kernel, target, Span(0, size))
    elif (room := mount_room(target)) is not None and size > room:
        raise too_little_space(target, size, room, "must be written")


def used_up(kernel: Kernel, target: Target, size: int, error: OSError) -> KtaskfsError | None:
    """The limit that kept the directory ``target`` from ``size`` more bytes; None if the errno of ``error`` names it.

    Raises OSError.
    """
    # For a lack of pages hugetlbfs has ENOMEM. With nr_inodes= alone it reports no number of inodes.
    no_inode = target.filesystem is FilesystemType.HUGETLBFS or (mount_inodes(target) == 0 and mount_room(target) != 0)
    if error.errno == errno.ENOSPC and no_inode:
        return TargetError(f"{target.path}: its filesystem has no inode left", errno=errno.ENOSPC)
    if error.errno == errno.ENOMEM and target.filesystem is FilesystemType.HUGETLBFS:
        pages, pool, room = size // target.page_size, pool_of(kernel, target.page_size), mount_room(target)
        refusal = group_refusal(kernel, target, pages, reserve=True) or nodes_refusal(kernel, target, pages)
        is_short = (pool is not None and pages > pool.available) or (room is not None and size > room)
        return refusal or (too_few_pages(kernel, target, pages) if is_short else None)
    return None


def changes(kernel: Kernel, files: FileList, path: str) -> dict[str, object]:
    """The lines of a plan to copy ``files`` to ``path``, if there is room.

    Raises as ``TargetTree`` and ``require_room``.
    """
    told: dict[str, object] = {"files": len(files), "bytes": files.bytes}
    try:
        fd = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        told["creates"] = path
        target: Target = open_target(kernel, path, kinds=frozenset(FilesystemType), create=0o600, leave_absent=True)
    except OSError as error:
        raise TargetError.from_os(error, f"open {path}") from error
    else:
        target = directory_as_target(fd, path)
    try:
        if "creates" not in told:
            require_usable(kernel, target, empty=True)
        require_room(kernel, files, target, new="creates" in told)
    finally:
        os.close(target.fd)
    return told


def partly_done(files: FileList, left: Sequence[Node], page: int) -> set[int]:
    """The files of which an earlier run has copied some pieces (``FileList.pieces``), but not all: it has ``left``
    the rest."""
    spans = sorted(Span(each.start, each.end) for each in left)
    done = (piece for low, high in gaps(spans, 0, files.total) for piece in files.pieces(low, high, page))
    return {piece.file for piece in done if piece.extent.size < piece.size}
