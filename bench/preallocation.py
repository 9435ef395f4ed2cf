"""Allocating and zeroing memory beforehand, beside everything a person would use for it instead.

Usage: python -m bench.preallocation [--smoke] [--rounds N] [--size BYTES] (as root: it reserves huge pages)
Takes QEMU in where it is installed (bench/peers.sh does that). The pool has pages for twice the size.
"""

from __future__ import annotations

import platform
import shutil
import subprocess
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from bench.data_operations import tmpfs
from bench.harness import GIB, Contender, Goal, Line, Section, Series, Settings, Table, alternate, main, seconds
from bench.main_job import PAGE, PEER_CHUNK, THREADS, job
from bench.mounts import Ktaskfs, directory, hugetlbfs
from bench.peers import build, inner_seconds
from bench.pool import reserved
from ktaskfs.units import human_size

if TYPE_CHECKING:
    from pathlib import Path

GIGANTIC: Final = 1 << 30
COUNTS: Final = (1, THREADS)
NAMES: Final = {1: "1 thread", THREADS: f"{THREADS} threads"}
QEMU: Final = f"qemu-system-{platform.machine()}"
FALLOCATE: Final = "fallocate(1)"


@dataclass(frozen=True)
class Place:
    """A file of memory to be made: ``page`` is the size (bytes) of its pages."""

    target: Path
    page: int

    def afresh(self) -> None:
        """The file gone, so that all its pages are missing."""
        self.target.unlink(missing_ok=True)


def ours(mount: Ktaskfs, place: Place, size: int, threads: int) -> Contender:
    def measure() -> float:
        return job(mount, "fallocate", place.target, f"length={size} max_threads={threads}")

    return Contender(f"ktaskfs, {NAMES[threads]}", measure, place.afresh)


def limit(place: Place, size: int, threads: int) -> Contender:
    """The C program, in chunks that are whole pages: two threads in one page would wait for each other."""
    populate = build("populate")
    chunk = max(PEER_CHUNK, place.page)
    return Contender(
        f"C, MADV_POPULATE_WRITE, {NAMES[threads]}",
        lambda: inner_seconds(populate, place.target, size, threads, chunk),
        place.afresh,
    )


def fallocate(place: Place, size: int) -> Contender:
    command = ["fallocate", "-l", str(size), str(place.target)]
    return Contender(FALLOCATE, lambda: seconds(lambda: subprocess.run(command, check=True)), place.afresh)


def qemu(place: Place, size: int, threads: int) -> Contender:
    """What QEMU takes longer with preallocation than without: the rest is its own start and end."""

    def once(preallocation: str) -> float:
        place.afresh()
        memory = f"memory-backend-file,id=m,size={size},mem-path={place.target},share=on,{preallocation}"
        machine = ["-M", "none", "-nodefaults", "-display", "none", "-monitor", "stdio"]
        command = [QEMU, "-object", memory, *machine]
        return seconds(lambda: subprocess.run(command, input=b"quit\n", stdout=subprocess.DEVNULL, check=True))

    def measure() -> float:
        without = once("prealloc=off")
        return once(f"prealloc=on,prealloc-threads={threads}") - without

    return Contender(f"QEMU, {NAMES[threads]}", measure)


def preallocating(mount: Ktaskfs, place: Place, size: int, what: str, settings: Settings) -> Section:
    """All contenders on ``size`` bytes of ``what``."""
    has_qemu = shutil.which(QEMU) is not None
    contenders = [ours(mount, place, size, threads) for threads in COUNTS]
    contenders.append(fallocate(place, size))
    contenders += [qemu(place, size, threads) for threads in COUNTS if has_qemu]
    contenders += [limit(place, size, threads) for threads in COUNTS]
    warm = not settings.smoke
    series = alternate(contenders, settings.rounds, warmups=int(warm), calm=warm)
    place.afresh()
    one, two = NAMES[1], NAMES[THREADS]
    goals = [Goal(f"speed against {FALLOCATE}", FALLOCATE, f"ktaskfs, {two}", least=1)]
    goals += [Goal(f"speed against QEMU, {two}", f"QEMU, {two}", f"ktaskfs, {two}", least=1)] * has_qemu
    for threads in (one, two):
        peer = f"C, MADV_POPULATE_WRITE, {threads}"
        goals.append(Goal(f"speed against the same in C, {threads}", peer, f"ktaskfs, {threads}", least=0.95))
    return Section(
        f"Preallocating {human_size(size)} of {what}", series, work=size, goals=goals, note=explanation(has_qemu)
    )


def explanation(has_qemu: bool) -> str:
    text = "ktaskfs: from the write of the spec until `wait` ends. fallocate(1): the whole process. "
    text += "C: from the open until the last join; this is the limit. "
    if not has_qemu:
        return text + f"QEMU is left out: there is no {QEMU} here."
    version = subprocess.run([QEMU, "--version"], check=True, capture_output=True, text=True).stdout.splitlines()[0]
    return text + f"QEMU: `prealloc=on` less `prealloc=off` just before; {version}."


def growing(mount: Ktaskfs, place: Place, settings: Settings) -> Section:
    """Time against size: a quarter of the size up to twice of it."""
    sizes = [settings.size * share // 4 // place.page * place.page for share in (1, 2, 4, 8)]
    contenders = []
    for size in sizes:
        for each in (ours(mount, place, size, THREADS), limit(place, size, THREADS)):
            name = f"{each.name}, {human_size(size)}"
            contenders.append(Contender(name, each.measure, each.before, work=size, group=each.name))
    series = alternate(contenders, settings.rounds, calm=not settings.smoke)
    place.afresh()
    return Section(
        f"Time against size: {human_size(sizes[0])} to {human_size(sizes[-1])} of 2 MiB pages, {THREADS} threads",
        series,
        tables=[lines(series)],
        note="The line of least squares through the medians. Deviation: of the point farthest from it, as a share of "
        "the line's value there. The intercept is what a task takes whatever its size.",
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
    with ExitStack() as stack:
        stack.enter_context(reserved(PAGE, 2 * settings.size))
        place = Place(stack.enter_context(hugetlbfs(where / "huge", PAGE)) / "target", PAGE)
        return [
            preallocating(mount, place, settings.size, "2 MiB pages", settings),
            growing(mount, place, settings),
        ]


def gigantic(mount: Ktaskfs, where: Path, settings: Settings) -> Section:
    """As many pages of 1 GiB as can be had, up to the size; an even number, for two threads have to share them."""
    most = max(1, settings.size // GIGANTIC)
    with ExitStack() as stack:
        pages = next((count for count in (most, most // 2, 2, 1) if 0 < count <= most and had(stack, count)), 0)
        if not pages:
            note = "This machine gave no page of 1 GiB: nothing was measured."
            return Section("Preallocating 1 GiB pages", [], note=note)
        place = Place(stack.enter_context(hugetlbfs(where / "gigantic", GIGANTIC)) / "target", GIGANTIC)
        return preallocating(mount, place, pages * GIGANTIC, "1 GiB pages", settings)


def had(stack: ExitStack, pages: int) -> bool:
    """Whether the pool could be given so many pages of 1 GiB, which ``stack`` then takes out again."""
    try:
        stack.enter_context(reserved(GIGANTIC, pages * GIGANTIC))
    except (RuntimeError, FileNotFoundError):  # too few, or none of this size on this machine
        return False
    return True


def in_tmpfs(mount: Ktaskfs, where: Path, settings: Settings) -> Section:
    with ExitStack() as stack:
        place = Place(tmpfs(stack, where / "tmpfs", "huge=always") / "target", PAGE)
        return preallocating(mount, place, settings.size, "tmpfs, huge=always", settings)


def measure(settings: Settings) -> list[Section]:
    with directory() as where, Ktaskfs(where / "mnt", where / "state") as mount:
        (mount.path / "debug/ktask_max_threads").write_text(str(THREADS))
        at_2m, growth = normal(mount, where, settings)
        return [at_2m, gigantic(mount, where, settings), in_tmpfs(mount, where, settings), growth]


if __name__ == "__main__":
    main("preallocation", "Preallocating and zeroing", measure)
