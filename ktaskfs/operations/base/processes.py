"""Find a process that a spec names, its mappings, and the file behind a mapping."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Final, NamedTuple

from ktaskfs.errors import InvalidValue, NotSupported, TargetError
from ktaskfs.host.process_memory import Process
from ktaskfs.units import escaped, format_size

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from ktaskfs.host.maps import Area

SHOWN: Final = 3
"""Mappings that a refusal names."""


def open_process(pid: int) -> Process:
    """Raises TargetError (ESRCH, EACCES), or NotSupported for the processes of another namespace."""
    try:
        return Process.find(pid)
    except OSError as error:
        if error.errno == errno.ENOTSUP:
            raise NotSupported(str(error.strerror)) from error
        raise TargetError.from_os(error, f"find process {pid}") from error


def areas_of(process: Process, mapping: int | None) -> list[Area]:
    """All mappings, or the one at an address. Raises TargetError, or InvalidValue if there is none."""
    try:
        areas = list(process.areas())
    except OSError as error:
        raise TargetError.from_os(error, f"read the mappings of process {process.pid}") from error
    if mapping is None:
        return areas
    there = [each for each in areas if each.start <= mapping < each.end]
    if not there:
        raise InvalidValue(f"process {process.pid} has no mapping at {mapping:#x}")
    return there


class MappedFiles(NamedTuple):
    """Several files that a process shares: one mapping of each. ``process`` stays open."""

    process: Process
    areas: Sequence[Area]


def map_file(pid: int, area: Area) -> str:
    """The path of the file behind a mapping, while the mapping exists; proc_pid_map_files(5)."""
    return f"/proc/{pid}/map_files/{area.start:x}-{area.end:x}"


def shared_areas(process: Process, mapping: int | None) -> list[Area]:
    """The shared mapping of a file at an address. Without an address, one mapping of each file that the process maps
    writable; of several files, only those in huge pages.

    Raises TargetError, and InvalidValue for memory without a file, a private mapping, no file, or several files
    without huge pages.
    """
    areas = areas_of(process, mapping)
    if mapping is not None:
        (area,) = areas
        where = f"what process {process.pid} has mapped at {mapping:#x}"
        if area.is_shared:  # a SysV segment's inode is its number, which may be 0
            return [area]
        if not area.inode:
            raise InvalidValue(f"{where} is memory without a file")
        raise InvalidValue(f"{where} is a private mapping: the process's writes do not reach the file")
    areas = [each for each in areas if each.is_shared and "w" in each.permissions]
    if not areas:
        raise InvalidValue(f"process {process.pid} has no shared mapping of a file to write to")
    files = _one_of_each_file(areas)
    if len(files) == 1:
        return files
    try:
        huge = set(process.huge_areas())
    except OSError as error:
        raise TargetError.from_os(error, f"read the mappings of process {process.pid}") from error
    files = _one_of_each_file(each for each in areas if each.start in huge)
    if not files:
        raise several(process, areas)
    return files


def several(process: Process, areas: Sequence[Area]) -> InvalidValue:
    """The refusal of a spec that does not choose one of several files of a process."""
    return InvalidValue(f"process {process.pid} shares several files; choose one: {_shown(areas)}")


def _one_of_each_file(areas: Iterable[Area]) -> list[Area]:
    return list({(each.device, each.inode): each for each in reversed(list(areas))}.values())[::-1]


def _shown(areas: Sequence[Area]) -> str:
    largest = sorted(areas, key=lambda each: -each.size)[:SHOWN]
    named = [f"mapping={each.start:#x} ({format_size(each.size)} of {escaped(each.name)})" for each in largest]
    return ", ".join([*named, *(["..."] if len(areas) > SHOWN else [])])


def open_mapped(process: Process, area: Area) -> int:
    """An O_PATH descriptor of the file behind a mapping; raises TargetError."""
    try:
        return process.mapped_file(area)
    except OSError as error:
        where = f"reach the file that process {process.pid} has mapped at {area.start:#x}"
        if error.errno == errno.EPERM:
            text = f"{where}: the process has closed it, and no path leads to it; you need "
            raise TargetError(f"{text}CAP_CHECKPOINT_RESTORE (or CAP_SYS_ADMIN)", errno=errno.EPERM) from error
        raise TargetError.from_os(error, where) from error
