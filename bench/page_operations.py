"""The operations on pages compared with the usual tools: survey, fill, verify, reserve, evict.

Usage: python -m bench.page_operations [--smoke] [--rounds N] [--size BYTES] (as root: it reserves huge pages)
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from bench.harness import Contender, Section, Settings, alternate, main, seconds
from bench.main_job import PAGE, PEER_CHUNK, THREADS, job
from bench.mounts import Ktaskfs, directory, hugetlbfs
from bench.peers import build, inner_seconds
from bench.pool import reserved
from ktaskfs.units import human_size

FILE_SIZE: Final = 64 << 10
PATTERN: Final = bytes(range(1, 128))


def both(mount: Ktaskfs, operation: str, path: Path, rest: str = "") -> list[Contender]:
    """ktaskfs with one and with two threads."""
    return [
        Contender("ktaskfs, 1 thread", lambda: job(mount, operation, path, f"{rest} max_threads=1")),
        Contender(f"ktaskfs, {THREADS} threads", lambda: job(mount, operation, path, f"{rest} max_threads={THREADS}")),
    ]


def filling(mount: Ktaskfs, target: Path, settings: Settings) -> list[Section]:
    repeat = build("repeat")
    written = alternate(
        [
            *both(mount, "fill", target, f"pattern={PATTERN.hex()}"),
            Contender(
                f"C, memcpy of a block, {THREADS} threads",
                lambda: inner_seconds(repeat, target, settings.size, THREADS, PEER_CHUNK),
            ),
        ],
        settings.rounds,
        calm=not settings.smoke,
    )
    job(mount, "fill", target, f"pattern={PATTERN.hex()}")
    with tempfile.TemporaryDirectory(dir="/dev/shm") as name:
        reference = Path(name, "reference")
        part = min(settings.size, 256 << 20)
        reference.write_bytes((PATTERN * (part // len(PATTERN) + 1))[:part])
        compared = alternate(
            [
                *both(mount, "verify", target, f"length={part} pattern={PATTERN.hex()}"),
                Contender(
                    "cmp(1) with a file of the pattern",
                    lambda: seconds(lambda: subprocess.run(["cmp", "-n", str(part), target, reference], check=True)),
                ),
            ],
            settings.rounds,
            calm=not settings.smoke,
        )
    return [
        Section(f"`fill`, {human_size(settings.size)} of 2 MiB pages", written, work=settings.size),
        Section(f"`verify`, {human_size(part)} of 2 MiB pages", compared, work=part),
    ]


def surveying(mount: Ktaskfs, huge: Path, target: Path, settings: Settings) -> list[Section]:
    sparse, size = huge / "sparse", (1 << 30 if settings.smoke else 1 << 40)
    with sparse.open("w") as file:
        file.truncate(size)
    subprocess.run(["fallocate", "-o", str(size - PAGE), "-l", str(PAGE), str(sparse)], check=True)
    full = alternate(both(mount, "survey", target), settings.rounds, calm=not settings.smoke)
    holes = alternate(both(mount, "survey", sparse), settings.rounds, calm=not settings.smoke)
    sparse.unlink()
    return [
        Section(f"`survey`, {human_size(settings.size)} of 2 MiB pages that are there", full, unit="ms"),
        Section(
            f"`survey`, {human_size(size)} of huge pages of which only the last is there",
            holes,
            unit="ms",
            note=f"ktaskfs asks the kernel for each of {size // PAGE} pages.",
        ),
    ]


def reserving(mount: Ktaskfs, settings: Settings) -> Section:
    counter = Path(f"/sys/kernel/mm/hugepages/hugepages-{PAGE >> 10}kB/nr_hugepages")
    before = int(counter.read_text())
    more = before + settings.size // PAGE

    def back() -> None:
        counter.write_text(str(before))

    series = alternate(
        [
            Contender("ktaskfs, 1 thread", lambda: seconds(lambda: reserve(mount, more, 1)), back),
            Contender(f"ktaskfs, {THREADS} threads", lambda: seconds(lambda: reserve(mount, more, THREADS)), back),
            Contender("echo N > nr_hugepages", lambda: seconds(lambda: counter.write_text(str(more))), back),
        ],
        settings.rounds,
        calm=not settings.smoke,
    )
    back()
    note = "The kernel changes the pool of one page size for one caller at a time, so more threads cannot be faster."
    return Section(f"`reserve`, {human_size(settings.size)} of 2 MiB pages more", series, unit="ms", note=note)


def reserve(mount: Ktaskfs, pages: int, threads: int) -> None:
    """A task without a path, from the write of its spec until it is done."""
    mount.submit(f"reserve pages={pages} size={PAGE} name=r max_threads={threads}")
    mount.wait("r")
    (mount.path / "tasks/r").rmdir()


def evicting(mount: Ktaskfs, settings: Settings) -> Section:
    number = 50 if settings.smoke else 1000
    with tempfile.TemporaryDirectory(dir="/var/tmp") as name:
        tree = Path(name)
        files = [tree / f"d{index % 50}" / f"f{index}" for index in range(number)]
        for file in files:
            file.parent.mkdir(exist_ok=True)
            file.write_bytes(os.urandom(FILE_SIZE))
        subprocess.run(["sync", "-f", name], check=True)

        def read() -> None:
            for file in files:
                file.read_bytes()

        contenders = [Contender(each.name, each.measure, read) for each in both(mount, "evict", tree)]
        command = ["vmtouch", "-q", "-e", name]
        if shutil.which("vmtouch") is None:  # the manual of dd(1) has this to drop the cache of a file
            dd = ["dd", "of={}", "oflag=nocache", "conv=notrunc,fdatasync", "count=0", "status=none"]
            command = ["find", name, "-type", "f", "-exec", *dd, ";"]
        contenders.append(
            Contender(
                "vmtouch -e" if command[0] == "vmtouch" else "find -exec dd oflag=nocache",
                lambda: seconds(lambda: subprocess.run(command, check=True, stdout=subprocess.DEVNULL)),
                read,
            )
        )
        series = alternate(contenders, settings.rounds, calm=not settings.smoke)
    return Section(f"`evict`, {number} files of {human_size(FILE_SIZE)}", series, unit="ms")


def measure(settings: Settings) -> list[Section]:
    with ExitStack() as stack:
        where = stack.enter_context(directory())
        stack.enter_context(reserved(PAGE, settings.size + PAGE))
        huge = stack.enter_context(hugetlbfs(where / "huge", PAGE))
        mount = stack.enter_context(Ktaskfs(where / "mnt", where / "state"))
        target = huge / "target"
        job(mount, "fallocate", target, f"length={settings.size}")
        sections = [*filling(mount, target, settings), *surveying(mount, huge, target, settings)]
        target.unlink()
        return [*sections, reserving(mount, settings), evicting(mount, settings)]


if __name__ == "__main__":
    main("page_operations", "Operations on pages", measure)
