"""Facts from /proc and /sys for ``ktaskfs doctor``; a test passes another tree."""

from __future__ import annotations

import os
import pwd
import re
from typing import Final, Literal, NamedTuple

from ktaskfs.units import parse_cpulist, parse_size, unescaped

POOLS: Final = "sys/kernel/mm/hugepages"
NODES: Final = "sys/devices/system/node"


class Settled(NamedTuple):
    """The level of a finding that asks for nothing."""

    name: Literal["ok", "unknown"]


class ToMend(NamedTuple):
    """The level of a problem, for everybody or for some; ``mend`` is the command that fixes it, if there is one."""

    name: Literal["wrong", "note"]
    mend: str | None


OK: Final = Settled("ok")
UNKNOWN: Final = Settled("unknown")


def wrong(mend: str | None) -> ToMend:
    """The level of a problem."""
    return ToMend("wrong", mend)


def note(mend: str) -> ToMend:
    """The level of a problem that only some people have."""
    return ToMend("note", mend)


class Diagnosis(NamedTuple):
    """A finding of a check."""

    check: str
    level: Settled | ToMend
    text: str

    @property
    def is_wrong(self) -> bool:
        """Whether it is a problem."""
        return self.level.name == "wrong"

    @property
    def mend(self) -> str | None:
        """The command that fixes it."""
        return self.level.mend if isinstance(self.level, ToMend) else None


def name_of(uid: int) -> str:
    """The name of a user; the number if there is none."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


class MountLine(NamedTuple):
    """A line of /proc/self/mounts."""

    point: str
    kind: str
    options: tuple[str, ...]

    def option(self, name: str) -> str | None:
        """The value of ``name=``."""
        return next((each.partition("=")[2] for each in self.options if each.startswith(f"{name}=")), None)


class MachineFiles(NamedTuple):
    """The files below ``root``, which is / except in tests. Paths have no slash at the beginning."""

    root: str = "/"

    def read(self, path: str) -> str | None:
        """The text of a file; None if it does not exist, or may not be read."""
        try:
            with open(os.path.join(self.root, path), encoding="utf-8", errors="surrogateescape") as stream:
                return stream.read()
        except OSError:
            return None

    def number(self, path: str) -> int | None:
        """The number in a file; None if the file has anything else, or cannot be read."""
        text = (self.read(path) or "").strip()
        return int(text) if text.isdigit() else None

    def names(self, directory: str) -> list[str]:
        """The names in a directory, sorted; none if it cannot be read."""
        try:
            return sorted(os.listdir(os.path.join(self.root, directory)))
        except OSError:
            return []

    def exists(self, path: str) -> bool:
        """Whether there is such a file."""
        return os.path.exists(os.path.join(self.root, path))

    def may_write(self, path: str) -> bool:
        """Whether the caller may write to such a file."""
        return os.access(os.path.join(self.root, path), os.W_OK)

    def page_sizes(self) -> list[int]:
        """Bytes of each size of huge pages, smallest first."""
        matches = (re.fullmatch(r"hugepages-(\d+)kB", name) for name in self.names(POOLS))
        return sorted(int(match[1]) << 10 for match in matches if match is not None)

    def pool(self, size: int, count: str, nid: int | None = None) -> int:
        """A count of a pool, ``nr_hugepages`` and so on, of the machine or of one node; 0 if it is unknown."""
        place = POOLS if nid is None else f"{NODES}/node{nid}/hugepages"
        return self.number(f"{place}/hugepages-{size >> 10}kB/{count}") or 0

    def meminfo(self, key: str) -> int:
        """Bytes in a line of /proc/meminfo; 0 if there is no such line."""
        match = re.search(rf"^{key}:\s+(\d+) kB$", self.read("proc/meminfo") or "", re.MULTILINE)
        return int(match[1]) << 10 if match is not None else 0

    def nodes(self) -> list[int]:
        """The NUMA nodes that have memory."""
        text = (self.read(f"{NODES}/has_memory") or "").strip()
        return list(parse_cpulist(text)) if text else [0]

    def cpus(self) -> int:
        """How many CPUs are online."""
        return len(parse_cpulist((self.read("sys/devices/system/cpu/online") or "0").strip()))

    def room(self, directory: str) -> os.statvfs_result | None:
        """statvfs(3) of a directory; None if that cannot be had."""
        try:
            return os.statvfs(os.path.join(self.root, directory))
        except OSError:
            return None

    def filesystems(self, table: str = "proc/self/mounts") -> list[MountLine]:
        """The filesystems in a table of the form of fstab(5): the mounted ones."""
        lines = (line.split() for line in (self.read(table) or "").splitlines() if not line.lstrip().startswith("#"))
        rows = [words for words in lines if len(words) > 3]
        return [MountLine(unescaped(words[1]), words[2], tuple(words[3].split(","))) for words in rows]

    def page_size_of(self, mounted: MountLine) -> int:
        """Bytes of a page of a hugetlbfs."""
        text = mounted.option("pagesize")
        return self.meminfo("Hugepagesize") if text is None else parse_size(text)
