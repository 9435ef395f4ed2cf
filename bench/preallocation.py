"""Allocating and zeroing memory in advance, compared with the usual tools.

Usage: python -m bench.preallocation [--smoke] [--rounds N] [--size BYTES] (as root: it reserves huge pages)
Includes QEMU if it is installed (bench/peers.sh installs it). The pool has pages for twice the size.
"""

from __future__ import annotations

import functools
import platform
import shutil
import subprocess
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from bench.beyond_start import least, split
from bench.data_operations import tmpfs, warm
from bench.harness import GIB, Contender, Goal, Line, Section, Series, Settings, Table, alternate, main, seconds
from bench.main_job import PAGE, PEER_CHUNK, THREADS, job
from bench.mounts import Ktaskfs, directory, hugetlbfs
from bench.peers import build, inner_seconds
from bench.pool import reserved
from ktaskfs.memory.tmpfs import WINDOW
from ktaskfs.units import human_size

if TYPE_CHECKING:
    from pathlib import Path

GIGANTIC: Final = 1 << 30
COUNTS: Final = (1, THREADS)
NAMES: Final = {1: "1 thread", THREADS: f"{THREADS} threads"}
TMPFS_SIZE: Final = 1 << 30
"""More does not stay warm from one use to the next where a host takes back what lies free."""
QEMU: Final = f"qemu-system-{platform.machine()}"


@dataclass(frozen=True)
class Place:
    """A file of memory to create: ``page`` is the size (bytes) of its pages, ``what`` the kind of memory.

    ``tmpfs``: fallocate(2) allocates only, and the first touch zeroes a page. No pool keeps the memory: freed pages
    return to the system, and a virtual machine's host may take them and return them slowly.
    """

    target: Path
    page: int
    what: str
    tmpfs: bool = False

    def afresh(self, size: int) -> None:
        """The file gone, so that all its pages are missing, and memory for ``size`` bytes just used."""
        self.remove()
        if self.tmpfs:
            warm(self.target, size)

    def remove(self) -> None:
        self.target.unlink(missing_ok=True)


def ours(mount: Ktaskfs, place: Place, size: int, threads: int) -> Contender:
    def measure() -> float:
        return job(mount, "fallocate", place.target, f"length={size} max_threads={threads}")

    return Contender(f"ktaskfs, {NAMES[threads]}", measure, functools.partial(place.afresh, size))


def limit(place: Place, size: int, threads: int, *, windows: bool = False) -> Contender:
    """The C program, in chunks that are whole pages: two threads in one page would wait for each other.

    ``windows``: a thread has as few bytes mapped at a time as one of ktaskfs.
    """
    populate = build("populate")
    arguments = [place.target, size, threads, max(PEER_CHUNK, place.page), *([WINDOW] if windows else [])]
    way = f"as ktaskfs, {human_size(WINDOW)} mapped a thread" if windows else "MADV_POPULATE_WRITE"
    return Contender(
        f"C, {way}, {NAMES[threads]}",
        lambda: inner_seconds(populate, *arguments),
        functools.partial(place.afresh, size),
    )


def shortest(mount: Ktaskfs, place: Place, size: int) -> Contender:
    """A task on one page that exists, with the caches as they are before the others."""
    page = limit(place, place.page, 1)

    def before() -> None:
        place.afresh(size)
        page.measure()

    return least(lambda: job(mount, "fallocate", place.target, f"length={place.page}"), before)


def fallocate(place: Place, size: int) -> Contender:
    """fallocate(1); if it leaves the pages to be zeroed at the first touch, also a program that touches them."""
    command = ["fallocate", "-l", str(size), str(place.target)]
    touch = limit(place, size, 1)

    def measure() -> float:
        allocated = seconds(lambda: subprocess.run(command, check=True))
        return allocated + (touch.measure() if place.tmpfs else 0)

    name = "fallocate(1), then touched" if place.tmpfs else "fallocate(1)"
    return Contender(name, measure, functools.partial(place.afresh, size))


def qemu(place: Place, size: int, threads: int) -> Contender:
    """The additional time of QEMU with preallocation: the rest is its own start and end."""

    def once(preallocation: str) -> float:
        memory = f"memory-backend-file,id=m,size={size},mem-path={place.target},share=on,{preallocation}"
        machine = ["-M", "none", "-nodefaults", "-display", "none", "-monitor", "stdio"]
        command = [QEMU, "-object", memory, *machine]
        return seconds(lambda: subprocess.run(command, input=b"quit\n", stdout=subprocess.DEVNULL, check=True))

    def measure() -> float:
        place.remove()
        without = once("prealloc=off")
        place.afresh(size)
        return once(f"prealloc=on,prealloc-threads={threads}") - without

    return Contender(f"QEMU, {NAMES[threads]}", measure)


def preallocating(mount: Ktaskfs, place: Place, size: int, settings: Settings) -> Section:
    """All contenders on so many bytes."""
    mine = {threads: ours(mount, place, size, threads) for threads in COUNTS}
    plain = fallocate(place, size)
    emulator = {threads: qemu(place, size, threads) for threads in COUNTS if shutil.which(QEMU)}
    limits = {threads: limit(place, size, threads) for threads in COUNTS}
    same = {threads: limit(place, size, threads, windows=True) for threads in COUNTS} if place.tmpfs else limits
    peers = {each.name: each for each in (*limits.values(), *same.values())}
    contenders = [*mine.values(), plain, *emulator.values(), *peers.values(), shortest(mount, place, size)]
    warm = not settings.smoke
    measured = alternate(contenders, settings.rounds, warmups=int(warm), calm=warm)
    place.remove()
    series, beyond = split(measured, {mine[threads].name: same[threads].name for threads in COUNTS})
    best = mine[THREADS].name
    goals = [Goal(f"speed against {plain.name}", plain.name, best, least=1)]
    goals += [Goal(f"speed against {each.name}", each.name, best, least=1) for each in list(emulator.values())[-1:]]
    goals += [
        Goal(f"speed against {each.name}", each.name, mine[threads].name, least=0.95)
        for group in ([limits, same] if place.tmpfs else [limits])
        for threads, each in group.items()
    ]
    title = f"Preallocating {human_size(size)} of {place.what}"
    return Section(title, series, work=size, goals=goals, note=explanation(place), tables=[beyond])


def explanation(place: Place) -> str:
    """Notes: the counted and omitted times, and the reasons of slow contenders."""
    text = "ktaskfs: from the write of the spec until `wait` ends. fallocate(1): the whole process. "
    text += "C: from the open until the last join. "
    text += "The time of ktaskfs includes the start and the end of the task, that of QEMU does not. "
    if place.tmpfs:
        text += "fallocate(1) zeroes nothing here, so the C program with 1 thread then touches the pages. "
        text += "Before each measurement the C program fills and frees as much memory. "
        text += f"A thread of ktaskfs maps {human_size(WINDOW)} at a time, because mapped pages count as the worker's "
        text += "memory. Each unmapping interrupts the other processor. One C program does the same: the difference "
        text += "between the C programs is the cost of that rule. "
        text += "QEMU 7.2 maps the file at an address where no huge page fits, so it gets pages of 4 KiB. "
    else:
        text += "Neither ktaskfs nor C maps the file by windows, because mapped pages of hugetlbfs do not count as "
        text += "memory of the process. "
    if shutil.which(QEMU) is None:
        return text + f"There is no {QEMU} here."
    version = subprocess.run([QEMU, "--version"], check=True, capture_output=True, text=True).stdout.splitlines()[0]
    return text + f"QEMU: the time with `prealloc=on` minus that with `prealloc=off` just before; {version}."


def growing(mount: Ktaskfs, place: Place, settings: Settings) -> Section:
    """Time against size: a quarter of the size up to twice of it."""
    sizes = [settings.size * share // 4 // place.page * place.page for share in (1, 2, 4, 8)]
    contenders = []
    for size in sizes:
        for each in (ours(mount, place, size, THREADS), limit(place, size, THREADS)):
            name = f"{each.name}, {human_size(size)}"
            contenders.append(Contender(name, each.measure, each.before, work=size, group=each.name))
    series = alternate(contenders, settings.rounds, calm=not settings.smoke)
    place.remove()
    return Section(
        f"Time against size: {human_size(sizes[0])} to {human_size(sizes[-1])} of 2 MiB pages, {THREADS} threads",
        series,
        tables=[lines(series)],
        note="The line of least squares through the medians. Deviation: that of the point farthest from the line, as "
        "a share of the line's value there. The intercept is the part of the time that does not depend on the size.",
    )


def lines(series: list[Series]) -> Table:
    """For each group, the line through its medians."""
    rows = []
    for group in dict.fromkeys(each.group for each in series):
        line = Line.through([((each.work or 0) / GIB, each.median) for each in series if each.group == group])
        cells = [f"{line.slope:.4f}", f"{line.intercept * 1e3:.1f}", f"{line.r_squared:.5f}", f"{line.deviation:.1%}"]
        rows.append([group, *cells])
    return Table(["", "slope s/GiB", "intercept ms", "R²", "greatest deviation"], rows)


def normal(mount: Ktaskfs, where: Path, settings: Settings) -> list[Section]:
    """Time against size comes first, for it touches every page of the pool: the first time is slow in a machine."""
    with ExitStack() as stack:
        stack.enter_context(reserved(PAGE, 2 * settings.size))
        place = Place(stack.enter_context(hugetlbfs(where / "huge", PAGE)) / "target", PAGE, "2 MiB pages")
        growth = growing(mount, place, settings)
        return [preallocating(mount, place, settings.size, settings), growth]


def gigantic(mount: Ktaskfs, where: Path, settings: Settings) -> Section:
    """As many pages of 1 GiB as can be had, up to the size, halved until they can: the threads share them evenly."""
    pages = max(1, settings.size // GIGANTIC)
    with ExitStack() as stack:
        while pages and not had(stack, pages):
            pages //= 2
        if not pages:
            note = "This machine has no free page of 1 GiB, so nothing was measured."
            return Section("Preallocating 1 GiB pages", [], note=note)
        huge = stack.enter_context(hugetlbfs(where / "gigantic", GIGANTIC))
        return preallocating(mount, Place(huge / "target", GIGANTIC, "1 GiB pages"), pages * GIGANTIC, settings)


def had(stack: ExitStack, pages: int) -> bool:
    """Whether the pool could be given so many pages of 1 GiB, which ``stack`` then takes out again."""
    try:
        stack.enter_context(reserved(GIGANTIC, pages * GIGANTIC))
    except (RuntimeError, FileNotFoundError):  # too few, or none of this size on this machine
        return False
    return True


def in_tmpfs(mount: Ktaskfs, where: Path, settings: Settings) -> Section:
    with ExitStack() as stack:
        memory = tmpfs(stack, where / "tmpfs", "huge=always")
        place = Place(memory / "target", PAGE, "tmpfs with huge=always", tmpfs=True)
        return preallocating(mount, place, min(settings.size, TMPFS_SIZE), settings)


def measure(settings: Settings) -> list[Section]:
    with directory() as where, Ktaskfs(where / "mnt", where / "state") as mount:
        (mount.path / "debug/ktask_max_threads").write_text(str(THREADS))
        at_2m, growth = normal(mount, where, settings)
        return [at_2m, gigantic(mount, where, settings), in_tmpfs(mount, where, settings), growth]


if __name__ == "__main__":
    main("preallocation", "Preallocating and zeroing", measure)
