#!/usr/bin/python3
"""A hook of libvirt: adds the huge pages of a domain before it starts, and removes them after its end.

Install it as /etc/libvirt/hooks/qemu.d/ktaskfs (libvirt 6.5 or later). libvirt calls it with the domain's name, what
happens to the domain, and two more words, and writes the domain's XML to its standard input
(libvirt.org/hooks.html). For a domain with ``<memoryBacking><hugepages>`` the hook adds the free pages that its nodes
lack, and removes as many at its end. Without memory for them the domain does not start, and libvirt shows the reason.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import subprocess
import sys
import xml.etree.ElementTree as ET
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

STATE = Path("/run/libvirt/ktaskfs")
"""A file for each domain with pages that were added: NODE, bytes of a page, and how many, of each pool. While a domain
starts, a second file, NAME.start, has the free pages that it is about to take."""
NODES = Path("/sys/devices/system/node")
POOLS = Path("/sys/kernel/mm/hugepages")
UNITS = {"b": 1, "bytes": 1, "KB": 1000, "k": 1024, "KiB": 1024, "MB": 1000**2, "M": 1024**2, "MiB": 1024**2}
UNITS |= {"GB": 1000**3, "G": 1024**3, "GiB": 1024**3, "TB": 1000**4, "T": 1024**4, "TiB": 1024**4}


@dataclass(frozen=True)
class Want:
    """Pages of ``page_size`` bytes that a cell of the domain needs on ``nodes`` of the host."""

    page_size: int
    pages: int
    nodes: tuple[int, ...]


@dataclass(frozen=True)
class Pool:
    """The huge pages of one size on one node."""

    node: int
    page_size: int

    @property
    def _directory(self) -> Path:
        return NODES / f"node{self.node}/hugepages/hugepages-{self.page_size >> 10}kB"

    def read(self, name: str) -> int:
        """``nr_hugepages`` or ``free_hugepages``."""
        return int((self._directory / name).read_text())

    @property
    def available(self) -> int:
        """Free pages that are not reserved. The kernel counts reservations for all nodes together."""
        promised = int((POOLS / self._directory.name / "resv_hugepages").read_text())
        return max(0, self.read("free_hugepages") - promised)

    def grow(self, pages: int, name: str) -> None:
        """Add or remove pages. Raises CalledProcessError after ``ktaskfs`` has printed the reason."""
        spec = f"reserve size={self.page_size} nodes={self.node} pages={self.read('nr_hugepages') + pages}"
        spec += f" reclaim=1 name=libvirt-{name}-{self.page_size >> 10}kB-{self.node}"
        command = ["ktaskfs", "run", "--quiet", "--if-exists=replace", spec]
        quiet = subprocess.DEVNULL
        subprocess.run(command, check=True, stdin=quiet, stdout=quiet, close_fds=False)  # it shares the lock


def numbers(text: str) -> tuple[int, ...]:
    """The numbers of a list such as ``0-2,4``; ``^1`` excludes a number."""
    found: dict[int, None] = {}
    for part in text.split(","):
        first, _, last = part.strip().removeprefix("^").partition("-")
        each = range(int(first), int(last or first) + 1)
        if part.strip().startswith("^"):
            found = {number: None for number in found if number not in each}
        else:
            found |= dict.fromkeys(each)
    return tuple(found)


def size(element: ET.Element, value: str, default_unit: str = "KiB") -> int:
    """The bytes of ``value`` in the unit of ``element``."""
    return int(value) * UNITS[element.get("unit", default_unit)]


def default_page_size() -> int:
    """Bytes of the machine's default huge page."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("Hugepagesize:"))


def wants(domain: ET.Element) -> list[Want]:
    """What the domain needs; nothing if it does not ask for huge pages."""
    backing = domain.find("memoryBacking/hugepages")
    if backing is None:
        return []
    pages = backing.findall("page")
    host = tuple(sorted(int(path.name.removeprefix("node")) for path in NODES.glob("node[0-9]*")))
    everywhere = domain.find("numatune/memory")
    nodes = host if everywhere is None or "nodeset" not in everywhere.attrib else numbers(everywhere.attrib["nodeset"])
    own = {int(each.attrib["cellid"]): numbers(each.attrib["nodeset"]) for each in domain.iter("memnode")}
    cells = [(int(each.attrib["id"]), size(each, each.attrib["memory"])) for each in domain.iterfind("cpu/numa/cell")]
    if not cells:
        memory = domain.find("memory")
        assert memory is not None
        cells = [(0, size(memory, memory.text or "0"))]
    found = []
    for cell, length in cells:
        of_it = [each for each in pages if cell in numbers(each.get("nodeset", str(cell)))]
        of_it.sort(key=lambda each: "nodeset" not in each.attrib)
        page_size = size(of_it[0], of_it[0].attrib["size"]) if of_it else default_page_size()
        if not pages or of_it:  # else this cell has ordinary pages
            found.append(Want(page_size, -(-length // page_size), own.get(cell, nodes)))
    return found


def memory_free(node: int) -> int:
    """Bytes of the node that are free, or that the kernel can free at once."""
    words = [line.split() for line in (NODES / f"node{node}/meminfo").read_text().splitlines()]
    values = {word[2]: int(word[3]) << 10 for word in words}
    return values["MemFree:"] + values["Active(file):"] + values["Inactive(file):"]


def shares(want: Want, taken: dict[Pool, int]) -> dict[Pool, int]:
    """How many pages to add to which pool. ``taken`` are free pages for other cells; those for this one come to them.

    The node with most free memory gives first; what is too much for all of them is asked of the last one, and refused.
    """
    pools = [Pool(node, want.page_size) for node in want.nodes]
    missing, added = want.pages, {}
    for pool in pools:
        there = min(missing, max(0, pool.available - taken.get(pool, 0)))
        taken[pool] = taken.get(pool, 0) + there
        missing -= there
    pools.sort(key=lambda pool: -memory_free(pool.node))
    for pool in pools:
        most = missing if pool is pools[-1] else min(missing, memory_free(pool.node) // want.page_size)
        if most:
            added[pool] = most
            missing -= most
    return added


def remembered(file: Path) -> list[tuple[Pool, int]]:
    """The added pages of a domain."""
    try:
        text = file.read_text()
    except FileNotFoundError:
        return []
    return [(Pool(node, page_size), pages) for node, page_size, pages in json.loads(text)]


def remember(file: Path, added: Iterable[tuple[Pool, int]]) -> None:
    """Store what ``remembered`` returns. Raises OSError, and the last note stays."""
    new = file.with_suffix(".new")
    try:
        new.write_text(json.dumps([(pool.node, pool.page_size, pages) for pool, pages in added]))
        new.rename(file)
    finally:
        new.unlink(missing_ok=True)


def promise(file: Path) -> Path:
    """The file with the free pages that a domain is about to take."""
    return file.with_suffix(".start")


def promised(directory: Path) -> dict[Pool, int]:
    """The free pages that domains are about to take."""
    found: dict[Pool, int] = {}
    for file in directory.glob("*.start"):
        for pool, pages in remembered(file):
            found[pool] = found.get(pool, 0) + pages
    return found


def prepare(domain: ET.Element, file: Path, name: str) -> None:
    """Add the missing pages, and store how many. Raises CalledProcessError and OSError after it removed them again."""
    added = remembered(file)  # of an earlier run, whose end could not remove them
    settle(file)  # of one that was killed
    others = promised(file.parent)
    taken = dict(others)
    try:
        for want in wants(domain):
            for pool, pages in shares(want, taken).items():
                pool.grow(pages, name)
                taken[pool] = taken.get(pool, 0) + pages
                added.append((pool, pages))
                remember(file, added)
        soon = [(pool, pages - others.get(pool, 0)) for pool, pages in taken.items()]
        if any(pages for _, pages in soon):
            remember(promise(file), soon)
    except (subprocess.CalledProcessError, OSError):
        remove(added, file, name)  # the file may lack the last ones
        raise


def settle(file: Path) -> None:
    """The domain has taken its pages, or does not start."""
    promise(file).unlink(missing_ok=True)


def release(file: Path, name: str) -> None:
    """Remove the added pages that are neither in use nor about to be taken. Raises CalledProcessError and OSError."""
    settle(file)
    remove(remembered(file), file, name)


def remove(added: Iterable[tuple[Pool, int]], file: Path, name: str) -> None:
    """Remove these pages from all pools, and store those that are left. Raises CalledProcessError and OSError.

    The file goes first: a killed hook leaves pages in the pools, but the next one does not remove pages of others.
    """
    others = promised(file.parent)
    file.unlink(missing_ok=True)
    left: list[tuple[Pool, int]] = []
    failure: subprocess.CalledProcessError | OSError | None = None
    for pool, pages in added:
        removed = 0
        try:
            unused = min(pages, max(0, pool.available - others.get(pool, 0)))
            pool.grow(-unused, name)
            removed = unused
        except (subprocess.CalledProcessError, OSError) as error:
            failure = error
        if removed < pages:
            left.append((pool, pages - removed))
    try:
        if left:
            remember(file, left)
    except OSError:
        for pool, pages in left:
            where = f"the pool of node {pool.node}"
            print(f"ktaskfs: {pages} huge pages of {pool.page_size} bytes stay in {where}", file=sys.stderr)
        raise
    if failure is not None:
        raise failure


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """While this runs, or a command that outlives a killed hook, no other domain changes the pools."""
    STATE.mkdir(mode=0o700, parents=True, exist_ok=True)
    directory = os.open(STATE, os.O_RDONLY)
    try:
        fcntl.flock(directory, fcntl.LOCK_EX)
        os.set_inheritable(directory, True)
        yield
    finally:
        os.close(directory)


def main() -> int:
    """With exit status 1 the domain does not start."""
    _, _, operation, part, *_ = sys.argv
    if (operation, part) not in {("prepare", "begin"), ("started", "begin"), ("release", "end")}:
        return 0
    domain = ET.fromstring(sys.stdin.read())
    name = domain.findtext("uuid", "")
    try:
        if operation == "started":  # it does not wait for a domain that adds pages for minutes
            settle(STATE / name)
            return 0
        with alone():
            if operation == "prepare":
                prepare(domain, STATE / name, name)
            else:
                release(STATE / name, name)
    except subprocess.CalledProcessError:
        return 1
    except OSError as error:  # no pool of that size on that node, no command ktaskfs, or no room to store the pages
        print(f"ktaskfs: {error.filename or STATE / name}: {error.strerror}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
