from __future__ import annotations

import errno
import mmap
import os
import subprocess
from typing import TYPE_CHECKING

import pytest

from ktaskfs.errors import Finding, KtaskfsError, NotSupported
from ktaskfs.host import page_cache
from ktaskfs.host.tree import DEPTH_MAX
from ktaskfs.ktask import Job
from ktaskfs.operations.trees._files import COST
from ktaskfs.span import Node
from tests.operations.trees.ground import SIZE, as_nobody, cached, filesystem_of, make, parsed, result_of
from tests.support import filesystems

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.runner import Runner

STAYED = ("stayed", "stayed_bytes", "stayed_unknown")
NOTHING_ELSE = dict.fromkeys([*STAYED, "skipped", "mounts"], 0)


def test_dirty_and_clean_files_leave_the_cache(runner: Runner, disk: Path) -> None:
    files = [make(disk / f"d{number % 7}/deeper/f{number}") for number in range(100)]
    files.append(make(disk / "bad\udcff name\n"))
    subprocess.run(["sync", "-f", str(disk)], check=True)
    for file in files[::2]:
        make(file)  # dirty again
    assert all(cached(file) == SIZE for file in files)
    content = {file: file.read_bytes() for file in files}
    plan = runner.prepare("evict", path=disk)
    assert [node.size for node in plan.nodes] == [101 * (SIZE + COST)]
    result = result_of(plan)
    assert result == {"files": 101, "bytes": 101 * SIZE} | NOTHING_ELSE
    assert sum(cached(file) for file in files) == 0
    assert all(file.read_bytes() == data for file, data in content.items())


@pytest.fixture
def overlay(disk: Path) -> Iterator[Path]:
    """An overlay over two directories of ``disk``, with a file in the lower one; ``disk`` itself where it is one."""
    if filesystem_of(disk) == "overlayfs":
        make(disk / "old")
        yield disk
        return
    make(disk / "lower/old")
    for name in ("upper", "work"):
        (disk / name).mkdir()
    subprocess.run(["sync", "-f", str(disk)], check=True)
    layers = ",".join(f"{name}dir={disk / name}" for name in ("lower", "upper", "work"))
    with filesystems.filesystem("overlay", disk / "merged", layers) as merged:
        yield merged


def test_dirty_files_of_an_overlay(runner: Runner, overlay: Path) -> None:
    """The pages belong to the file below, whose dirty ones must be written before they can go."""
    files = [overlay / "old", *(make(overlay / f"d/f{number}") for number in range(10))]
    assert [cached(file) for file in files] == [SIZE] * 11
    content = [file.read_bytes() for file in files]
    result = result_of(runner.prepare("evict", path=overlay))
    assert result == {"files": 11, "bytes": 11 * SIZE} | NOTHING_ELSE
    assert [cached(file) for file in files] == [0] * 11
    assert [file.read_bytes() for file in files] == content


def missing_call(*arguments: object) -> None:
    raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))


@pytest.mark.parametrize("older", [False, True], ids=["cachestat", "mincore"])
def test_what_stays_is_told_to_whom_the_kernel_tells_it(
    runner: Runner, disk: Path, monkeypatch: pytest.MonkeyPatch, older: bool
) -> None:
    """A file of 1.5 pages and a mapped one, which are root's, and one that a stranger may write."""
    files = [make(disk / name) for name in ("mapped", "small", "writable")]
    os.truncate(files[1], 6000)
    files[2].chmod(0o666)
    if older:
        monkeypatch.setattr(page_cache, "_cachestat", missing_call)

    def evict() -> list[int]:
        result = result_of(runner.prepare("evict", path=disk))
        return [result[name] for name in ("files", *STAYED)]

    with files[0].open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapping:
        assert mapping[:]
        assert evict() == [3, 1, SIZE, 0]
        assert as_nobody(evict) == [3, 0, 0, 3 if older else 2]
    assert evict() == [3, 0, 0, 0]


def test_one_file(runner: Runner, disk: Path) -> None:
    file, other = make(disk / "file"), make(disk / "other")
    assert result_of(runner.prepare("evict", path=file))["files"] == 1
    assert (cached(file), cached(other)) == (0, SIZE)


def test_a_directory_of_nothing_but_links(runner: Runner, disk: Path) -> None:
    """As the cache of a model hub has them: the files lie beside, and each counts once."""
    blobs = [make(disk / f"blobs/{number}") for number in range(3)]
    shown = disk / "snapshots/main"
    shown.mkdir(parents=True)
    for number, blob in enumerate([*blobs, blobs[0]]):
        (shown / f"model-{number}").symlink_to(f"../../blobs/{blob.name}")
    (disk / "latest").symlink_to("snapshots/main")
    assert result_of(runner.prepare("evict", path=shown))["files"] == 0
    for path in (shown, disk / "latest"):
        assert all(cached(blob) for blob in blobs)
        result = result_of(runner.prepare("evict", path=path, links=1))
        assert result == {"files": 3, "bytes": 3 * SIZE} | NOTHING_ELSE
        assert not any(cached(blob) for blob in blobs)
        for blob in blobs:
            blob.read_bytes()


def test_links_fifos_and_sockets_are_left_alone(runner: Runner, disk: Path) -> None:
    outside = make(disk / "outside/file")
    (disk / "tree").mkdir()
    (disk / "tree/link").symlink_to(outside)
    (disk / "tree/directory").symlink_to(disk / "outside")
    os.mkfifo(disk / "tree/fifo")
    assert result_of(runner.prepare("evict", path=disk / "tree"))["files"] == 0
    assert cached(outside) == SIZE
    (disk / "way").symlink_to(disk / "outside")
    with pytest.raises(KtaskfsError) as caught:
        runner.prepare("evict", path=disk / "way")
    assert caught.value.errno == errno.ELOOP


def test_a_directory_replaced_by_a_link_meanwhile(runner: Runner, disk: Path) -> None:
    outside = make(disk / "outside/f0")
    files = [make(disk / f"tree/d/f{number}") for number in range(3)]
    make(disk / "tree/beside")
    plan = runner.prepare("evict", path=disk / "tree")
    files[0].parent.rename(disk / "tree/moved")
    (disk / "tree/d").symlink_to(disk / "outside")
    result = result_of(plan)
    assert (result["files"], result["skipped_ELOOP"]) == (1, 3)
    assert cached(outside) == SIZE


def test_files_that_go_or_may_not_be_opened(runner: Runner, disk: Path) -> None:
    files = [make(disk / f"f{number}") for number in range(20)]
    plan = runner.prepare("evict", path=disk)
    for file in files[:5]:
        file.unlink()
    result = result_of(plan)
    assert (result["files"], result["skipped"], result["skipped_gone"]) == (15, 5, 5)

    files[6].chmod(0o600)
    (disk / "closed").mkdir(0o700)
    result = as_nobody(lambda: result_of(runner.prepare("evict", path=disk)))
    assert (result["files"], result["skipped"], result["skipped_EACCES"]) == (14, 2, 2)


def test_a_task_that_could_evict_nothing_fails(runner: Runner, disk: Path) -> None:
    (disk / "tree").mkdir()
    file = make(disk / "tree/file")

    def evicted() -> tuple[int, str]:
        try:
            plan = runner.prepare("evict", path=disk / "tree")
            outcome = Job(plan.nodes, plan.control).run()
        except KtaskfsError as error:
            return error.errno, ""
        with pytest.raises(Finding) as caught:
            plan.finish(outcome)
        return caught.value.errno, caught.value.result

    file.chmod(0o600)
    stayed = "".join(f"{name} 0\n" for name in STAYED)
    expected = f"files 0\nbytes 0\n{stayed}skipped 1\nmounts 0\nskipped_EACCES 1\nreason path\nEACCES file\n"
    assert as_nobody(evicted) == [errno.EACCES, expected]
    (disk / "tree").chmod(0o700)
    assert as_nobody(evicted) == [errno.EACCES, ""]
    file.unlink()
    assert result_of(runner.prepare("evict", path=disk / "tree"))["files"] == 0  # there is nothing to do


def test_a_call_that_is_missing_fails_the_task(runner: Runner, disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(disk / "file")
    plan = runner.prepare("evict", path=disk)

    monkeypatch.setattr(os, "posix_fadvise", missing_call)
    with pytest.raises(Finding) as caught:
        runner.result(plan)
    assert caught.value.errno == errno.ENOSYS


@pytest.mark.parametrize("cross", [0, 1])
def test_other_mounts(runner: Runner, disk: Path, cross: int) -> None:
    file, beyond = make(disk / "file"), make(disk / "other/beyond")
    (disk / "tree/mounted").mkdir(parents=True)
    file.rename(disk / "tree/file")
    subprocess.run(["mount", "--bind", str(disk / "other"), str(disk / "tree/mounted")], check=True)
    try:
        result = result_of(runner.prepare("evict", path=disk / "tree", cross_mounts=cross))
    finally:
        subprocess.run(["umount", str(disk / "tree/mounted")], check=True)
    assert (result["files"], result["mounts"]) == ((2, 0) if cross else (1, 1))
    assert cached(beyond) == (0 if cross else SIZE)
    assert cached(disk / "tree/file") == 0


def test_each_file_once_over_several_ranges(runner: Runner, disk: Path) -> None:
    files = [make(disk / f"f{number}") for number in range(50)]
    each = SIZE + COST
    rest = [Node(0, 10 * each, -1), Node(40 * each, 10 * each, -1)]
    assert result_of(runner.prepare("evict", rest, path=disk))["files"] == 20
    assert sum(cached(file) == 0 for file in files) == 20
    assert result_of(runner.prepare("evict", [Node(10 * each, 30 * each, -1)], path=disk))["files"] == 30
    assert sum(cached(file) for file in files) == 0


def test_a_large_file_is_cut(runner: Runner, disk: Path) -> None:
    """Dirty, and longer at the end than it was when it was found; then in two runs."""
    file, more = disk / "large", 3000
    file.write_bytes(os.urandom(21 << 20))
    plan = runner.prepare("evict", path=disk)
    with file.open("ab") as end:
        end.write(bytes(more))
    runner.work(plan, max_chunk_size=1 << 20)
    assert cached(file) == 0
    file.read_bytes()
    total = file.stat().st_size + COST
    first = parsed(runner.result(runner.prepare("evict", [Node(0, total // 2, -1)], path=disk)))
    rest = parsed(runner.result(runner.prepare("evict", [Node(total // 2, total - total // 2, -1)], path=disk)))
    assert (first["files"], rest["files"]) == (0, 1), "it counts where its end is"
    assert first["bytes"] + rest["bytes"] == file.stat().st_size
    assert cached(file) == 0


def test_a_tree_too_deep(runner: Runner, disk: Path) -> None:
    here = os.open(disk, os.O_RDONLY)
    for _ in range(DEPTH_MAX + 5):
        os.mkdir("d", dir_fd=here)
        below = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)
    make(disk / "file")
    result = result_of(runner.prepare("evict", path=disk))
    assert (result["files"], result["skipped_ENAMETOOLONG"]) == (1, 1)
    subprocess.run(["rm", "-r", str(disk / "d")], check=True)


def test_files_of_memory_are_refused(runner: Runner, tmpfs: Path) -> None:
    assert isinstance(runner.refused("evict", path=tmpfs), NotSupported)
