"""Operations on trees of ordinary files compared with the usual tools.

Usage: python -m bench.trees [--smoke] [--rounds N] [--size BYTES] (as root: it mounts; vmtouch: bench/peers.sh)
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Final

from bench.harness import Contender, Goal, Section, Settings, alternate, main, seconds
from bench.main_job import THREADS, job
from bench.mounts import Ktaskfs, directory
from ktaskfs.units import human_size

if TYPE_CHECKING:
    from collections.abc import Callable

FILES: Final = 100
MANY: Final = 20_000
PIECE: Final = 1 << 20
"""Bytes that a thread digests at a time, as ktaskfs does."""


def make_files(top: Path, size: int) -> None:
    """FILES files of ``size`` bytes in all, in ten directories, synced to the disk."""
    for number in range(FILES):
        file = top / f"d{number % 10}" / f"f{number}"
        file.parent.mkdir(exist_ok=True)
        with file.open("wb") as opened:
            for _ in range(size // FILES >> 20):
                opened.write(os.urandom(1 << 20))
            opened.write(os.urandom(size // FILES & (1 << 20) - 1))
    subprocess.run(["sync", "-f", top], check=True)


def join_files(top: Path) -> None:
    """One file with the data of all, synced to the disk."""
    with (top / "whole").open("wb") as whole:
        for file in sorted(top.glob("*/*")):
            whole.write(file.read_bytes())
    for emptied in top.glob("*/"):
        shutil.rmtree(emptied)
    subprocess.run(["sync", "-f", top], check=True)


def command(*words: str) -> Callable[[], float]:
    """The seconds that a command takes."""
    return lambda: seconds(lambda: subprocess.run(words, check=True, stdout=subprocess.DEVNULL))


def ours(mount: Ktaskfs, operation: str, top: Path, before: Callable[[], object], rest: str = "") -> list[Contender]:
    """ktaskfs with one and with two threads."""
    return [
        Contender("ktaskfs, 1 thread", lambda: job(mount, operation, top, f"{rest} max_threads=1"), before),
        Contender(
            f"ktaskfs, {THREADS} threads", lambda: job(mount, operation, top, f"{rest} max_threads={THREADS}"), before
        ),
    ]


def prefetching(mount: Ktaskfs, top: Path, settings: Settings) -> list[Section]:
    def cold() -> None:
        job(mount, "evict", top)

    def warm() -> None:
        job(mount, "prefetch", top)

    vmtouch = shutil.which("vmtouch")
    sections = []
    for title, before, least in (("cold", cold, 1.3), ("warm", warm, 2.0)):
        contenders = ours(mount, "prefetch", top, before)
        contenders.append(Contender("cat", command("sh", "-c", 'cat "$0"/*/*', str(top)), before))
        goals = []
        if vmtouch:
            contenders.append(Contender("vmtouch -t", command(vmtouch, "-q", "-t", str(top)), before))
            goals.append(Goal("vmtouch -t / ktaskfs", "vmtouch -t", f"ktaskfs, {THREADS} threads", least=least))
        series = alternate(contenders, settings.rounds, calm=not settings.smoke)
        text = f"`prefetch`, {title}, {human_size(settings.size)} in {FILES} files"
        sections.append(Section(text, series, work=settings.size, goals=goals))
    return sections


def digest_memory(size: int) -> None:
    """SHA-256 of so many bytes with THREADS threads, which read no file: the limit of a checksum."""

    def work() -> None:
        block = memoryview(bytearray(PIECE))
        digest = hashlib.sha256()
        for _ in range(size // THREADS // PIECE):
            digest.update(block)

    with ThreadPoolExecutor(THREADS) as pool:
        for each in [pool.submit(work) for _ in range(THREADS)]:
            each.result()


def digesting(mount: Ktaskfs, top: Path, settings: Settings) -> Section:
    """The whole tree is in the page cache, as ``prefetch`` reads it, not as the last peer did."""
    job(mount, "evict", top)
    job(mount, "prefetch", top)
    find = f"find {top} -type f -print0 | xargs -0 -n 8 -P {THREADS} "
    contenders = [
        Contender(each.name, each.measure) for each in ours(mount, "checksum", top, lambda: None, "algorithm=sha256sum")
    ]
    peers = {f"xargs -P{THREADS} openssl dgst": "openssl dgst -sha256", f"xargs -P{THREADS} sha256sum": "sha256sum"}
    contenders += [Contender(name, command("sh", "-c", find + tool)) for name, tool in peers.items()]
    alone = f"limit, SHA-256 of memory, {THREADS} threads"
    contenders.append(Contender(alone, lambda: seconds(lambda: digest_memory(settings.size))))
    series = alternate(contenders, settings.rounds, calm=not settings.smoke)
    openssl = next(iter(peers))
    goal = Goal(f"{openssl} / ktaskfs", openssl, f"ktaskfs, {THREADS} threads", least=1.2)
    title = f"`checksum algorithm=sha256sum`, {human_size(settings.size)} in {FILES} files"
    note = "SHA-256 of memory is the limit, because no file is read. Python and openssl have the same code for it. "
    note += "ktaskfs maps the files, which prefetch has read in huge pages, and starts a task; openssl copies the "
    note += "files into buffers and starts processes. With small pages ktaskfs takes a tenth longer."
    return Section(title, series, work=settings.size, goals=[goal], note=note)


def copying(mount: Ktaskfs, top: Path, memory: Path, files: int, settings: Settings) -> Section:
    """From the page cache to a tmpfs."""
    copy = memory / "copy"

    def afresh() -> None:
        shutil.rmtree(copy, ignore_errors=True)

    def ours(threads: int) -> float:
        return job(mount, "copy", copy, f"source={top} max_threads={threads}")

    side_by_side = 'cd "$0" && find . -type d -exec mkdir -p "$1"/{} \\; && find . -type f -print0'
    side_by_side += f' | xargs -0 -P{THREADS} -I@ cp @ "$1"/@'
    contenders = [
        Contender("ktaskfs, 1 thread", lambda: ours(1), afresh),
        Contender(f"ktaskfs, {THREADS} threads", lambda: ours(THREADS), afresh),
        Contender("cp -r", command("cp", "-r", str(top), str(copy)), afresh),
        Contender(f"xargs -P{THREADS} cp", command("sh", "-c", side_by_side, str(top), str(copy)), afresh),
    ]
    series = alternate(contenders, settings.rounds, calm=not settings.smoke)
    afresh()
    best = f"ktaskfs, {THREADS} threads"
    goals = [
        Goal("cp -r / ktaskfs", "cp -r", best, least=1.5),
        Goal(f"xargs -P{THREADS} cp / ktaskfs", f"xargs -P{THREADS} cp", best, least=1.1),
    ]
    title = f"`copy`, {human_size(settings.size)} in {files} file{'s' if files > 1 else ''}, to tmpfs"
    return Section(title, series, work=settings.size, goals=goals)


def many(mount: Ktaskfs, top: Path, settings: Settings) -> Section:
    """The walk, and what each small file costs."""
    number = MANY // 100 if settings.smoke else MANY
    for index in range(number):
        if index % 1000 == 0:
            (top / f"d{index // 1000}").mkdir(parents=True)
        (top / f"d{index // 1000}" / f"f{index}").write_bytes(b"x")
    subprocess.run(["sync", "-f", top], check=True)
    contenders = ours(mount, "prefetch", top, lambda: None)
    if vmtouch := shutil.which("vmtouch"):
        contenders.append(Contender("vmtouch -t", command(vmtouch, "-q", "-t", str(top))))
    series = alternate(contenders, settings.rounds, calm=not settings.smoke)
    return Section(f"`prefetch`, warm, {number} files of one byte", series, unit="ms")


def measure(settings: Settings) -> list[Section]:
    with ExitStack() as stack:
        where = stack.enter_context(directory())
        disk = stack.enter_context(directory(Path("/var/tmp")))
        mount = stack.enter_context(Ktaskfs(where / "mnt", where / "state"))
        large = disk / "large"
        large.mkdir()
        make_files(large, settings.size)
        sections = [*prefetching(mount, large, settings), digesting(mount, large, settings)]
        with tempfile.TemporaryDirectory(dir="/dev/shm") as memory:
            sections.append(copying(mount, large, Path(memory), FILES, settings))
            join_files(large)
            sections.append(copying(mount, large, Path(memory), 1, settings))
        shutil.rmtree(large)
        return [*sections, many(mount, disk / "many", settings)]


if __name__ == "__main__":
    main("trees", "Trees of files", measure, size="2G")
