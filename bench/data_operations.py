"""The operations on data compared with the usual tools: copy, checksum, compare, free.

Usage: python -m bench.data_operations [--smoke] [--rounds N] [--size BYTES] (as root: it reserves huge pages)
Includes xxh128sum and b3sum if they are installed (Debian: xxhash, b3sum). Needs five times the size in memory.
"""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Final

from bench.beyond_start import least, split
from bench.harness import Contender, Goal, Section, Series, Settings, Table, alternate, main, seconds
from bench.main_job import PAGE, THREADS, job
from bench.mounts import Ktaskfs, directory, hugetlbfs
from bench.peers import build, inner_seconds
from bench.pool import reserved
from ktaskfs.memory.tmpfs import WINDOW
from ktaskfs.operations.ranges.free import MIN_CHUNK
from ktaskfs.units import human_size

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

PEER_CHUNK: Final = 16 << 20
OURS: Final = f"ktaskfs, {THREADS} threads"
START: Final = "8 to 15 ms of ktaskfs are the start and the end of the task, for every size."
COLD: Final = (
    " If the quartiles of a program are far apart, it got memory that the host of this machine had taken back; the "
    "lower quartile is that of warm memory."
)

NOTES: Final = {
    "blake3": " No package of Debian 12 has a program in C for this digest: b3sum is Rust, and the goal is against it. "
    "b3sum works in a mapping of the file. In a large task the hands of the worker do that, too: child "
    "processes, which a truncation of the file may kill. A small task first reads the data into a buffer, which "
    "takes 60 ms for each GiB here.",
}
"""A note on an algorithm, beside its figures."""


DISK: Final = Path("/var/tmp")
"""The sources, cached like the weights of a model or the image of a guest."""
INTO_HUGETLBFS: Final = "the page cache into hugetlbfs"
INTO_TMPFS: Final = "the page cache into tmpfs"
FROM_TMPFS: Final = "tmpfs into tmpfs"
INTO_LARGE: Final = "the page cache into tmpfs with huge pages"
WAYS: Final = {
    "read": "the same loop",
    "windows": f"as ktaskfs, {human_size(WINDOW)} mapped a thread",
    "pages": "the same loop",
}
"""What a way of bench/c/copy.c is called."""
SIDES: Final = {"read": "as ktaskfs, both read into buffers", "mapped": "memcmp in mappings of both"}
"""What a way of bench/c/compare.c is called."""
WHY_READ: Final = (
    "Hands compare only files that are both memory, and only in a task of 2 GiB or more. So here both files are read "
    "into buffers; memcmp(3) in a mapping dies of SIGBUS if somebody truncates the file."
)
SMALL_PAGE: Final = 4096
HOLE_SHARE: Final = 32 << 10
"""A file for holes has one for so many bytes of the benchmark's size."""
WHY_HOLES: Final = (
    "For each hole ktaskfs makes three system calls from Python (find the data, find its end, write). It reads up to "
    "256 KiB at once, with the holes, and asks for the target's size twice meanwhile, in case somebody truncates it."
)
WHY: Final = {
    INTO_HUGETLBFS: "dd, cat and cp write to tmpfs, because hugetlbfs has no write(2). Neither ktaskfs nor C maps "
    "the file by windows, because mapped pages of hugetlbfs do not count as memory of the process.",
    INTO_TMPFS: "A file has one tree of pages, with one lock: perf shows 40 % of the time in copying and 20 % at "
    "that lock. One thread of ktaskfs at a time sends pages (sendfile(2)); the loop in C copies through a buffer.",
    FROM_TMPFS: "One thread at a time sends pages (sendfile(2)). The other one reads a source on tmpfs into a "
    "buffer, as C does: a look through a mapping would turn pages that were allocated but never written into data. "
    "Python takes 4 µs for each 512 KiB.",
    INTO_LARGE: f"A thread maps {human_size(WINDOW)} at a time, because mapped pages count as the worker's memory, "
    "also for the OOM killer. Each unmapping interrupts the other processor. One C program does the same; the other "
    "one unmaps only at the end. Against cat: the kernel zeroes each page before the copy, because no system call "
    "inserts a huge page into tmpfs.",
}
"""Why a copy has this speed, by its target."""


def ours(
    mount: Ktaskfs, operation: str, path: Path, rest: str = "", before: Callable[[], object] = lambda: None
) -> list[Contender]:
    """ktaskfs with one thread, and with its maximum of threads."""
    return [
        Contender("ktaskfs, 1 thread", lambda: job(mount, operation, path, f"{rest} max_threads=1"), before),
        Contender(OURS, lambda: job(mount, operation, path, rest), before),
    ]


def command(*words: object, before: Callable[[], object] = lambda: None, name: str = "") -> Contender:
    """A program, with any output; cmp(1) has the status 0 here too, because the files are equal."""
    text = [str(word) for word in words]
    return Contender(
        name or text[0],
        lambda: seconds(lambda: subprocess.run(text, check=True, stdout=subprocess.DEVNULL)),
        before,
    )


def tmpfs(stack: ExitStack, where: Path, options: str) -> Path:
    """A tmpfs on the new directory ``where``."""
    where.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size=100%,{options}", "none", str(where)], check=True)
    stack.callback(subprocess.run, ["umount", str(where)], check=True)
    return where


def warm(unused: Path, size: int) -> None:
    """Use that much free memory once, in case the host of a virtual machine has taken it; no file stays."""
    inner_seconds(build("populate"), unused, size, THREADS, PEER_CHUNK)
    unused.unlink()


def write_random(file: Path, size: int) -> None:
    """A file of random bytes that is in the page cache and, if it is on a disk, has been written back."""
    block = os.urandom(8 << 20)
    with file.open("wb") as stream:
        for _ in range(0, size, len(block)):
            stream.write(block)
        stream.flush()
        os.fsync(stream.fileno())


def copying(
    mount: Ktaskfs, source: Path, target: Path, other: Path, ways: Sequence[str], what: str, settings: Settings
) -> Section:
    """``ways`` are those of bench/c/copy.c. dd, cat and cp write to ``other``: there is no write to hugetlbfs."""
    copy = build("copy")

    def afresh() -> None:
        target.unlink(missing_ok=True)
        other.unlink(missing_ok=True)
        warm(other, settings.size)

    def in_c(way: str) -> Contender:
        arguments = [target, settings.size, THREADS, PEER_CHUNK, source, way]
        return Contender(f"C, {WAYS[way]}, {THREADS} threads", lambda: inner_seconds(copy, *arguments), afresh)

    peers = [in_c(way) for way in ways]
    measured = alternate(
        [
            *ours(mount, "copy", target, f"source={source}", afresh),
            *peers,
            least(lambda: job(mount, "copy", target, f"source={source} length={PAGE}"), afresh),
            command("dd", f"if={source}", f"of={other}", "bs=1M", "status=none", before=afresh, name="dd bs=1M"),
            command("sh", "-c", f"cat '{source}' > '{other}'", before=afresh, name="cat"),
            command("cp", source, other, before=afresh),
        ],
        settings.rounds,
        calm=not settings.smoke,
    )
    afresh()
    series, beyond = split(measured, {OURS: peers[-1].name})
    goals = [
        Goal("speed against dd", "dd bs=1M", OURS, least=1.6),
        Goal("speed against cat", "cat", OURS, least=1.6),
        *(Goal(f"speed against {each.name}", each.name, OURS, least=0.95) for each in peers),
    ]
    title = f"`copy` of {human_size(settings.size)} from {what}"
    note = f"{WHY[what]}{COLD}"
    return Section(title, series, work=settings.size, goals=goals, note=note, tables=[beyond])


def write_sparse(file: Path, holes: int) -> None:
    """A page of data, then a page of hole, so many times."""
    with file.open("wb") as stream:
        for number in range(holes):
            stream.seek(number * 2 * SMALL_PAGE)
            stream.write(b"x" * SMALL_PAGE)
        stream.truncate(holes * 2 * SMALL_PAGE)


def copying_holes(mount: Ktaskfs, where: Path, settings: Settings) -> Section:
    """The time for each hole and the data before it."""
    holes = settings.size // HOLE_SHARE
    source, target = where / "sparse", where / "copied"
    write_sparse(source, holes)

    def afresh() -> None:
        target.unlink(missing_ok=True)

    def for_each(whole: Contender) -> Contender:
        return Contender(whole.name, lambda: whole.measure() / holes, whole.before)

    contenders = [
        *ours(mount, "copy", target, f"source={source}", afresh),
        command("cp", source, target, before=afresh),
    ]
    series = alternate([for_each(each) for each in contenders], settings.rounds, calm=not settings.smoke)
    afresh()
    source.unlink()
    goals = [Goal("time for each hole against cp", OURS, "cp", most=1)]
    title = f"`copy` from tmpfs into tmpfs: 4 KiB of data and a hole of 4 KiB, {holes} times"
    return Section(title, series, unit="us", goals=goals, note=f"{START} {WHY_HOLES}")


def copying_out(mount: Ktaskfs, huge: Path, out: Path, settings: Settings) -> Section:
    def afresh() -> None:
        out.unlink(missing_ok=True)

    series = alternate(
        [
            *ours(mount, "copy", out, f"source={huge}", afresh),
            command("dd", f"if={huge}", f"of={out}", "bs=1M", "status=none", before=afresh, name="dd bs=1M"),
            command("cp", huge, out, before=afresh),
        ],
        settings.rounds,
        calm=not settings.smoke,
    )
    afresh()
    return Section(f"`copy` of {human_size(settings.size)} of huge pages into tmpfs", series, work=settings.size)


def checksums(mount: Ktaskfs, file: Path, settings: Settings) -> list[Section]:
    peers = {"crc32": "cksum", "xxh3": "xxh128sum", "sha256": "sha256sum", "blake3": "b3sum"}
    sections = []
    for algorithm, program in peers.items():
        contenders = ours(mount, "checksum", file, f"algorithm={algorithm}")
        goals = []
        if shutil.which(program):
            contenders.append(command(program, file))
            if algorithm in NOTES:
                goals.append(Goal(f"speed against {program}", program, OURS, least=0.95))
        series = alternate(contenders, settings.rounds, calm=not settings.smoke)
        title = f"`checksum algorithm={algorithm}` of huge pages"
        note = f"{START}{NOTES.get(algorithm, '')}"
        sections.append(Section(title, series, work=settings.size, goals=goals, note=note))
    return sections


def beside_c(
    mine: Sequence[Contender], shortest: Contender, peers: Sequence[Contender], tool: Contender, settings: Settings
) -> tuple[list[Series], list[Goal], Table]:
    """ktaskfs beside programs in C, of which the first works as ktaskfs does, and the usual tool; goals against C."""
    measured = alternate([*mine, *peers, shortest, tool], settings.rounds, calm=not settings.smoke)
    goals = [Goal(f"speed against {each.name}", each.name, OURS, least=0.95) for each in peers]
    series, beyond = split(measured, {OURS: peers[0].name})
    return series, goals, beyond


def comparing(mount: Ktaskfs, file: Path, source: Path, settings: Settings) -> Section:
    compare = build("compare")
    peers = [
        Contender(
            f"C, {what}, {THREADS} threads",
            functools.partial(inner_seconds, compare, file, settings.size, THREADS, PEER_CHUNK, source, way),
        )
        for way, what in SIDES.items()
    ]
    series, goals, beyond = beside_c(
        ours(mount, "compare", file, f"source={source}"),
        least(lambda: job(mount, "compare", file, f"source={source} length={PAGE}"), lambda: None),
        peers,
        command("cmp", file, source),
        settings,
    )
    title = "`compare` of huge pages with a cached file that is the same"
    return Section(title, series, work=settings.size, goals=goals, note=f"{START} {WHY_READ}", tables=[beyond])


def freeing(mount: Ktaskfs, target: Path, what: str, settings: Settings) -> Section:
    def fill() -> None:
        subprocess.run(["fallocate", "-l", str(settings.size), str(target)], check=True)

    punch = build("punch")
    series, goals, beyond = beside_c(
        ours(mount, "free", target, "", fill),
        least(lambda: job(mount, "free", target, f"length={PAGE}"), fill),
        [
            Contender(
                f"C, the same system calls, {THREADS} threads",
                lambda: inner_seconds(punch, target, settings.size, THREADS, MIN_CHUNK),
                fill,
            )
        ],
        command("fallocate", "-p", "-o", 0, "-l", settings.size, target, before=fill, name="fallocate -p"),
        settings,
    )
    target.unlink()
    note = f"{START} ktaskfs frees by chunks, so that nobody waits long for the lock of the inode; fallocate holds it."
    note += " The start and the end are most of the time for huge pages, whose release takes C 1 ms for each GiB."
    title = f"`free` of {human_size(settings.size)} of {what}"
    return Section(title, series, work=settings.size, goals=goals, note=note, tables=[beyond])


def measure(settings: Settings) -> list[Section]:
    with ExitStack() as stack:
        where = stack.enter_context(directory())
        stack.enter_context(reserved(PAGE, settings.size))
        huge = stack.enter_context(hugetlbfs(where / "huge", PAGE))
        small = tmpfs(stack, where / "small", "huge=never")
        large = tmpfs(stack, where / "large", "huge=always")
        mount = stack.enter_context(Ktaskfs(where / "mnt", where / "state"))
        (mount.path / "debug/ktask_max_threads").write_text(str(THREADS))
        source = stack.enter_context(directory(DISK)) / "source"
        write_random(source, settings.size)
        file, inside = small / "file", small / "source"
        shutil.copyfile(source, inside)
        sections = [
            copying(mount, source, huge / "file", file, ["read"], INTO_HUGETLBFS, settings),
            copying(mount, source, file, file, ["pages"], INTO_TMPFS, settings),
            copying(mount, inside, file, file, ["pages"], FROM_TMPFS, settings),
            copying(mount, source, large / "file", large / "file", ["read", "windows"], INTO_LARGE, settings),
        ]
        inside.unlink()
        sections.append(copying_holes(mount, small, settings))
        target = huge / "file"
        job(mount, "copy", target, f"source={source}")
        sections.append(copying_out(mount, target, small / "out", settings))
        sections += checksums(mount, target, settings)
        sections.append(comparing(mount, target, source, settings))
        sections.append(freeing(mount, target, "2 MiB pages", settings))
        sections.append(freeing(mount, small / "file", "tmpfs", settings))
        return sections


if __name__ == "__main__":
    main("data_operations", "Operations on data", measure, size="1G")
