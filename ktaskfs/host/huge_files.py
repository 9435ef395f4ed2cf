"""The files of huge pages that have a path, in all mount namespaces visible to this process."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Final, NamedTuple

from ktaskfs.host.hugetlbfs import HugetlbfsMount, MountContent, Mounts, read_content, read_mounts
from ktaskfs.host.may_hang import answers_in_time

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ktaskfs.host.huge_mappings import FileId, SeenFile
    from ktaskfs.host.kernel import Kernel
    from ktaskfs.host.statx import FileStatus

PATIENCE: Final = 0.1
"""Maximum delay in seconds by mounts that do not answer, for their tables and again for their files."""
DELETED: Final = " (deleted)"
_MEMFD: Final = "/memfd:"
_SYSV: Final = "/SYSV"


class HugeFile(NamedTuple):
    """A file of huge pages: ``kind`` and ``path`` are for people, ``status`` is None if unknown."""

    page_size: int
    kind: str
    path: str
    status: FileStatus | None


class MountedFiles(NamedTuple):
    """Files with a path; mounts by device, each with its page size; other known devices.

    ``hung`` are the mount points that did not answer.
    """

    files: dict[FileId, HugeFile]
    mounts: dict[int, tuple[HugetlbfsMount, int]]
    others: frozenset[int]
    hung: tuple[str, ...]


def find_mounted(kernel: Kernel, viewer: int, pids: Iterable[int]) -> MountedFiles:
    """The files in the mount namespace of ``viewer``, with its paths, then those of other namespaces, below the root of
    a process there.

    This process has the root directory of ``viewer``.
    """
    tables = _tables(kernel, viewer, pids)
    places: dict[int, tuple[HugetlbfsMount, str]] = {}
    for root, mounts in tables:
        for each in mounts.hugetlbfs:
            known = places.get(each.device)
            if known is None or (each.whole and not known[0].whole):
                places[each.device] = (each, root)

    def content(device: int) -> MountContent | None:
        with contextlib.suppress(OSError, RecursionError):  # gone, or not accessible
            return read_content(kernel, *places[device])
        return None

    files: dict[FileId, HugeFile] = {}
    found: dict[int, tuple[HugetlbfsMount, int]] = {}
    answers = dict(answers_in_time(content, places, PATIENCE, kernel.proc))
    for device, has in answers.items():
        place, root = places[device]
        prefix = f"/proc/{root}" if root else ""
        if has is not None:
            found[device] = (place._replace(path=prefix + place.path), has.page_size)
            for path, status in has.files.items():
                files[device, status.inode, ""] = HugeFile(has.page_size, "file", prefix + path, status)
    others = frozenset[int]().union(*(mounts.others for _, mounts in tables))
    hung = tuple(place.path for device, (place, _) in places.items() if device not in answers)
    return MountedFiles(files, found, others, hung)


def _tables(kernel: Kernel, viewer: int, pids: Iterable[int]) -> list[tuple[str, Mounts]]:
    """The mounts of each mount namespace, that of ``viewer`` first, with the root there, below /proc ("" for ours)."""

    def namespace(process: str) -> str | None:
        with contextlib.suppress(OSError):
            return os.readlink(f"{process}/ns/mnt", dir_fd=kernel.proc)
        return None

    def table(process: str) -> Mounts | None:
        with contextlib.suppress(OSError):
            return read_mounts(kernel, process)
        return None

    ours = "self" if table(str(viewer)) is None else str(viewer)  # it may have ended
    members = {namespace(ours): ours}
    for pid in pids:
        name = namespace(str(pid))
        if name is not None:
            members.setdefault(name, str(pid))
    answers = dict(answers_in_time(table, members.values(), PATIENCE, kernel.proc))
    found = []
    for process in members.values():
        mounts = answers.get(process)
        if mounts is not None:
            found.append(("" if process == ours else f"{process}/root", mounts))
    return found


def named(file: FileId, seen: SeenFile, page_size: int, *, unmounted: bool) -> HugeFile:
    """A file outside the visible mounts, by the kernel's name. ``unmounted``: on a detached mount."""
    name = seen.name.removesuffix(DELETED)
    kind, path = "deleted" if seen.name.endswith(DELETED) else "file", name
    if unmounted:
        kind, path = "shared", ""
        if name.startswith(_MEMFD):
            kind, path = "memfd", name.removeprefix(_MEMFD)
        elif name.startswith(_SYSV):
            kind, path = "sysv", f"shmid {file[1]} key 0x{name.removeprefix(_SYSV)}"
    return HugeFile(page_size, kind, path, seen.status)
