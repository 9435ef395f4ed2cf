"""Checks of memory limits: overcommit, control groups, transparent huge pages."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, NamedTuple

from ktaskfs.cli.machine import OK, UNKNOWN, Diagnosis, MachineFiles, wrong
from ktaskfs.units import format_size, human_size

if TYPE_CHECKING:
    from collections.abc import Iterator

STRICT: Final = 2
"""The value of vm.overcommit_memory that limits the memory of all processes together."""
COMMITTED_MOST: Final = 0.9
"""The part of that limit that may be committed."""
ROOM_LEAST: Final = 256 << 20
"""Bytes that a control group should leave on tmpfs."""
UNLIMITED: Final = 1 << 60
"""Version 1 shows about 2**63 where there is no limit."""
THP: Final = "sys/kernel/mm/transparent_hugepage"


def check_overcommit(machine: MachineFiles) -> Iterator[Diagnosis]:
    """Whether workers may be started, and files of tmpfs may grow."""
    mode = machine.number("proc/sys/vm/overcommit_memory")
    if mode is None:
        yield Diagnosis("overcommit", UNKNOWN, "/proc/sys/vm/overcommit_memory cannot be read")
        return
    limit, committed = machine.meminfo("CommitLimit"), machine.meminfo("Committed_AS")
    words = f"vm.overcommit_memory is {mode}"
    if mode == STRICT:
        words += f"; {human_size(committed)} of {human_size(limit)} are committed"
    if mode == STRICT and committed > COMMITTED_MOST * limit:
        text = f"{words}; huge pages lower the limit"
        yield Diagnosis("overcommit", wrong("sysctl -w vm.overcommit_memory=0"), text)
    else:
        yield Diagnosis("overcommit", OK, words)


class _Files(NamedTuple):
    """The files of a controller in one version: its limit, what to write there for none, its use, and cache that gives
    way (memory.stat)."""

    limit: str
    no_limit: str
    usage: str
    cache: tuple[str, str] = ("", "")


MEMORY: Final = {
    2: _Files("memory.max", "max", "memory.current", ("file", "shmem")),
    1: _Files("memory.limit_in_bytes", "-1", "memory.usage_in_bytes", ("total_cache", "total_shmem")),
}

PIDS: Final = dict.fromkeys((2, 1), _Files("pids.max", "max", "pids.current"))
PIDS_LEAST: Final = 2
"""Processes and threads of a small task: its worker, and the thread that takes its commands."""


def _hugetlb(size: int) -> Iterator[dict[int, _Files]]:
    """The files for pages of ``size`` bytes: in use, and reserved."""
    unit = next(f"{size >> shift}{name}" for shift, name in ((30, "GB"), (20, "MB"), (10, "KB")) if size >> shift)
    for name in (f"hugetlb.{unit}", f"hugetlb.{unit}.rsvd"):
        yield {
            2: _Files(f"{name}.max", "max", f"{name}.current"),
            1: _Files(f"{name}.limit_in_bytes", "-1", f"{name}.usage_in_bytes"),
        }


class _Room(NamedTuple):
    """The bytes, or processes, that a limit leaves, the path of its file, and the command that lifts it."""

    left: int
    file: str
    lift: str


def check_groups(machine: MachineFiles) -> Iterator[Diagnosis]:
    """Whether the control groups of the caller, and so of its tasks, leave room."""
    room = _least_room(machine, "memory", MEMORY)
    if room is None:
        yield Diagnosis("control groups", OK, "no memory limit")
    else:
        level = wrong(room.lift) if room.left < ROOM_LEAST else OK
        yield Diagnosis("control groups", level, f"{room.file} leaves {human_size(room.left)} of memory")
    if (room := _least_room(machine, "pids", PIDS)) is not None:
        level = wrong(room.lift) if room.left < PIDS_LEAST else OK
        yield Diagnosis("control groups", level, f"{room.file} leaves {room.left} processes and threads")
    for size in machine.page_sizes():
        free = max(0, machine.pool(size, "free_hugepages") - machine.pool(size, "resv_hugepages")) * size
        for files in _hugetlb(size):
            room = _least_room(machine, "hugetlb", files)
            if room is not None:
                text = f"{room.file} leaves {human_size(room.left)} of the {human_size(free)} that are free in the pool"
                yield Diagnosis("control groups", wrong(room.lift) if room.left < free else OK, text)


def _least_room(machine: MachineFiles, controller: str, files: dict[int, _Files]) -> _Room | None:
    """The smallest room in the groups of this process and their parents, for a controller; None without a limit."""
    found = []
    for version, directory in _groups(machine, controller):
        names = files[version]
        limit, usage = (machine.number(f"{directory}/{name}") for name in (names.limit, names.usage))
        if limit is None or usage is None or limit >= UNLIMITED:  # "max" is no number
            continue
        stat = machine.read(f"{directory}/memory.stat") or ""
        cache, kept = (_of_stat(stat, key) for key in names.cache)
        file = f"/{directory}/{names.limit}"
        found.append(_Room(max(0, limit - usage + max(0, cache - kept)), file, f"echo {names.no_limit} > {file}"))
    return min(found, key=lambda room: room.left, default=None)


def _of_stat(stat: str, key: str) -> int:
    match = re.search(rf"^{key} (\d+)$", stat, re.MULTILINE) if key else None
    return int(match[1]) if match is not None else 0


def _groups(machine: MachineFiles, controller: str) -> Iterator[tuple[int, str]]:
    """The version and directory of each group of this process, from its own to the root, for a controller."""
    for line in (machine.read("proc/self/cgroup") or "").splitlines():
        _, controllers, path = line.split(":", 2)
        version = 1 if controllers else 2
        if controllers and controller not in controllers.split(","):
            continue
        kind = "cgroup" if controllers else "cgroup2"
        for mounted in machine.filesystems():
            if mounted.kind == kind and (not controllers or controller in mounted.options):
                parts = [part for part in path.split("/") if part]
                for count in range(len(parts), -1, -1):
                    yield version, "/".join((mounted.point[1:], *parts[:count]))
                break


def check_thp(machine: MachineFiles) -> Iterator[Diagnosis]:
    """Whether small pages may become huge ones: for collapse, and for tmpfs with huge=."""
    for name, bad, mended, what in (
        ("enabled", "never", "madvise", "no process gets transparent huge pages"),
        ("shmem_enabled", "deny", "never", "no tmpfs gets huge pages, whatever its option huge= says"),
    ):
        match = re.search(r"\[(\w+)\]", machine.read(f"{THP}/{name}") or "")
        if match is None:
            yield Diagnosis("transparent huge pages", UNKNOWN, f"/{THP}/{name} cannot be read")
        elif match[1] == bad:
            text = f"{name} is {bad}: {what}"
            yield Diagnosis("transparent huge pages", wrong(f"echo {mended} > /{THP}/{name}"), text)
        else:
            yield Diagnosis("transparent huge pages", OK, f"{name} is {match[1]}")
    size = machine.number(f"{THP}/hpage_pmd_size")
    if size is not None:
        yield Diagnosis("transparent huge pages", OK, f"a huge page is {format_size(size)}")
