"""Checks of the pools of huge pages: configured sizes, nodes, and hugetlbfs mounts."""

from __future__ import annotations

import os
import re
import shlex
from typing import TYPE_CHECKING, Final

from ktaskfs.cli.machine import OK, UNKNOWN, Diagnosis, MachineFiles, name_of, note, wrong
from ktaskfs.units import format_cpulist, format_size, human_size, parse_size

if TYPE_CHECKING:
    from collections.abc import Iterator

SETTINGS: Final = ("usr/lib", "run", "etc")
"""The directories of sysctl.d(5) and tmpfiles.d(5). A file in a later one overrides one of the same name in an earlier
one."""
WRITTEN: Final = re.compile(
    r"^w[!+-]*\s+/sys/(?:kernel/mm|devices/system/node/(node)\d+)/hugepages/hugepages-(\d+)kB/nr_hugepages"
    r"(?:\s+-){4}\s+(\d+)\s*$",
    re.MULTILINE,
)
"""A line of tmpfiles.d(5) for a pool, as written by ``ktaskfs pool save``."""
LEAST_IN_BLOCKS: Final = 0.05
"""The part of free memory that should be in blocks of a huge page or more. With less, each new huge page waits for
compaction."""
IMBALANCE: Final = 0.1
"""The largest difference between nodes, as a part of their mean."""


def asked_at_boot(machine: MachineFiles) -> dict[int, int]:
    """Pages by size, in bytes: of the kernel's command line, then of sysctl.d(5), then of tmpfiles.d(5)."""
    default = machine.meminfo("Hugepagesize")
    asked: dict[int, int] = {}
    size = default
    for word in (machine.read("proc/cmdline") or "").split():
        key, _, value = word.partition("=")
        if key == "hugepagesz":
            size = parse_size(_leading(r"[0-9]{1,12}[KMGT]?", value))
        elif key == "hugepages":  # N, or NODE:N,NODE:N
            counts = [part.rpartition(":")[2] for part in value.split(",")]
            asked[size] = sum(int(_leading(r"[0-9]{1,12}", each)) for each in counts)
    for text in (*_settings(machine, "sysctl.d"), machine.read("etc/sysctl.conf") or ""):
        for match in re.finditer(r"^\s*-?vm[./]nr_hugepages\s*=\s*(\d+)", text, re.MULTILINE):
            asked[default] = int(match[1])
    written: dict[int, int] = {}
    for match in _written(machine):
        written[int(match[2]) << 10] = int(match[3]) + (written.get(int(match[2]) << 10, 0) if match[1] else 0)
    return asked | written


def _leading(pattern: str, text: str) -> str:
    """The number at the beginning, as the kernel reads it: of ``1GB`` it takes 1G, and a word is 0 here."""
    match = re.match(pattern, text, re.IGNORECASE)
    return "0" if match is None else match[0]


def _settings(machine: MachineFiles, directory: str) -> Iterator[str]:
    """The texts of the effective files, by name."""
    files = {}
    for place in SETTINGS:
        names = machine.names(f"{place}/{directory}")
        files.update({name: f"{place}/{directory}/{name}" for name in names if name.endswith(".conf")})
    for name in sorted(files):
        yield machine.read(files[name]) or ""


def _written(machine: MachineFiles) -> list[re.Match[str]]:
    return [match for text in _settings(machine, "tmpfiles.d") for match in WRITTEN.finditer(text)]


def check_pools(machine: MachineFiles) -> Iterator[Diagnosis]:
    """Whether each pool has the configured pages, and any pages at all."""
    if not machine.page_sizes():
        yield Diagnosis("pools", wrong("boot a kernel with CONFIG_HUGETLBFS=y"), "the kernel has no huge pages")
        return
    asked = asked_at_boot(machine)
    for size in machine.page_sizes():
        total, surplus = machine.pool(size, "nr_hugepages"), machine.pool(size, "surplus_hugepages")
        free, name = machine.pool(size, "free_hugepages"), format_size(size)
        wanted, persistent = asked.get(size, 0), max(0, total - surplus)
        if persistent < wanted:
            text = f"{name}: {persistent} pages exist, but the boot asked for {wanted}"
            yield Diagnosis("pools", wrong(f"ktaskfs run reserve size={name} pages={wanted}"), text)
        elif total or wanted:
            more = f", {surplus} surplus" if surplus else ""
            yield Diagnosis("pools", OK, f"{name}: {total} pages, {free} free{more}")
    if not any(machine.pool(size, "nr_hugepages") or _overcommit(machine, size) for size in machine.page_sizes()):
        name = format_size(machine.meminfo("Hugepagesize") or machine.page_sizes()[0])
        mend = f"ktaskfs run reserve size={name} pages=NUMBER"
        yield Diagnosis("pools", wrong(mend), "all pools of huge pages are empty")


def _overcommit(machine: MachineFiles, size: int) -> int:
    return machine.pool(size, "nr_overcommit_hugepages")


def check_fragmentation(machine: MachineFiles) -> Iterator[Diagnosis]:
    """Whether free memory lies in blocks that are large enough for default huge pages."""
    size, base = machine.meminfo("Hugepagesize"), os.sysconf("SC_PAGE_SIZE")
    rows = [[int(count) for count in line.split()[4:]] for line in (machine.read("proc/buddyinfo") or "").splitlines()]
    blocks = [(base << order, count) for row in rows for order, count in enumerate(row)]
    if not blocks or not size:
        yield Diagnosis("fragmentation", UNKNOWN, "/proc/buddyinfo cannot be read")
        return
    free = sum(length * count for length, count in blocks)
    largest = max(length for length, _ in blocks)  # a gigantic page is made of several, by moving what is between
    whole = sum(length * count for length, count in blocks if length >= min(size, largest))
    words = f"{human_size(whole)} of {human_size(free)} free memory lie in blocks of {format_size(size)} or more"
    missing = asked_at_boot(machine).get(size, 0) - machine.pool(size, "nr_hugepages")
    if whole < max(LEAST_IN_BLOCKS * free, min(free, missing * size)):
        yield Diagnosis("fragmentation", wrong("echo 1 > /proc/sys/vm/compact_memory"), words)
    else:
        yield Diagnosis("fragmentation", OK, words)


def check_mounts(machine: MachineFiles) -> Iterator[Diagnosis]:
    """Whether each pool with pages has a hugetlbfs, and how that is mounted."""
    mounted = [each for each in machine.filesystems() if each.kind == "hugetlbfs"]
    reached = set()
    for each in mounted:
        size = machine.page_size_of(each)
        limit = each.option("size")
        point = shlex.quote(each.point)
        words = f"{each.point}: pages of {format_size(size)}"
        if "ro" in each.options:
            text = f"{words}, mounted read-only"
            yield Diagnosis("hugetlbfs", wrong(f"mount -o remount,rw {point}"), text)
            continue
        reached.add(size)
        if limit is not None and parse_size(limit) < size:
            text = f"{words}, with size={limit}, less than one page"
            anew = f"mount -t hugetlbfs -o pagesize={format_size(size)} none {point}"  # a remount changes no size
            mend = f"umount {point} && {anew}  # and with its other options"
            yield Diagnosis("hugetlbfs", wrong(mend), text)
        elif (room := machine.room(each.point[1:])) is not None and room.f_files and not room.f_ffree:
            text = f"{words}, but no inode is left for another file"
            yield Diagnosis("hugetlbfs", wrong(f"find {point} -type f  # and remove what nobody needs"), text)
        elif not _takes_files(machine, each.point[1:]):
            user = name_of(os.getuid())
            text = f"{words}, but {user} may not write to it"
            yield Diagnosis("hugetlbfs", note(f"install -d -o {user} {point}/{user}"), text)
        else:
            yield Diagnosis("hugetlbfs", OK, f"{words}{f', of which it may use {limit}' if limit else ''}")
    for size in machine.page_sizes():
        is_default = size == machine.meminfo("Hugepagesize")
        if size not in reached and (machine.pool(size, "nr_hugepages") or (is_default and not mounted)):
            name = format_size(size)
            point = "/dev/hugepages" if is_default else f"/dev/hugepages-{name}"
            mend = f"mkdir -p {point} && mount -t hugetlbfs -o pagesize={name} none {point}"
            yield Diagnosis("hugetlbfs", wrong(mend), f"no writable hugetlbfs has pages of {name}")


def _takes_files(machine: MachineFiles, point: str) -> bool:
    """Whether the caller may write to the directory, or to something in it."""
    if not machine.exists(point) or machine.may_write(point):
        return True
    return any(machine.may_write(f"{point}/{name}") for name in machine.names(point))


def check_balance(machine: MachineFiles) -> Iterator[Diagnosis]:
    """Whether the nodes have about equal numbers of pages, unless they were configured by node."""
    nodes = machine.nodes()
    by_node = re.search(r"\bhugepages=\d+:", machine.read("proc/cmdline") or "") is not None
    by_node = by_node or any(match[1] for match in _written(machine))
    for size in machine.page_sizes():
        counts = {nid: machine.pool(size, "nr_hugepages", nid) for nid in nodes}
        total, name = sum(counts.values()), format_size(size)
        if not total:
            continue
        words = f"{name}: " + ", ".join(f"node {nid} has {count}" for nid, count in counts.items())
        spread = max(counts.values()) - min(counts.values())
        if len(nodes) > 1 and not by_node and spread > max(1, IMBALANCE * total / len(nodes)):
            mend = f"ktaskfs run reserve size={name} pages={total} nodes={format_cpulist(nodes)}"
            yield Diagnosis("balance", wrong(mend), words)
        else:
            yield Diagnosis("balance", OK, words)
