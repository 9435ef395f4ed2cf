from __future__ import annotations

import errno
import os
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ktaskfs.errors import Finding, KtaskfsError, NotSupported
from ktaskfs.host.tree import DEPTH_MAX
from ktaskfs.ktask import Job
from ktaskfs.span import Node
from tests.support import filesystems
from tests.support.forked import run_forked

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ktaskfs.operations.base.plan import Plan
    from tests.support.runner import Runner

SIZE = 256 << 10


def filesystem_of(path: Path) -> str:
    """As stat(1) calls it."""
    command = ["stat", "-f", "-c", "%T", str(path)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


@pytest.fixture
def disk() -> Iterator[Path]:
    """A directory on a filesystem that has a disk behind it."""
    with tempfile.TemporaryDirectory(dir="/var/tmp", prefix="kt-") as name:
        if filesystem_of(Path(name)) in ("tmpfs", "ramfs"):
            pytest.skip("/var/tmp is on a filesystem of memory")
        Path(name).chmod(0o755)
        yield Path(name)


def make(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(os.urandom(SIZE))
    return path


def cached(path: Path) -> int:
    """Bytes that fincore(1) finds in memory."""
    command = ["fincore", "--bytes", "--noheadings", "-o", "RES", str(path)]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def result_of(plan: Plan) -> dict[str, int]:
    return parsed(plan.finish(Job(plan.nodes, plan.control).run()))


def parsed(text: str) -> dict[str, int]:
    return {key: int(value) for key, value in map(str.split, text.splitlines())}


def test_dirty_and_clean_files_leave_the_cache(runner: Runner, disk: Path) -> None:
    files = [make(disk / f"d{number % 7}/deeper/f{number}") for number in range(100)]
    files.append(make(disk / "bad\udcff name\n"))
    subprocess.run(["sync", "-f", str(disk)], check=True)
    for file in files[::2]:
        make(file)  # dirty again
    assert all(cached(file) == SIZE for file in files)
    content = {file: file.read_bytes() for file in files}
    plan = runner.prepare("evict", path=disk)
    assert [node.size for node in plan.nodes] == [101]
    result = result_of(plan)
    assert result == {"files": 101, "bytes": 101 * SIZE, "skipped": 0, "mounts": 0}
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
    assert result == {"files": 11, "bytes": 11 * SIZE, "skipped": 0, "mounts": 0}
    assert [cached(file) for file in files] == [0] * 11
    assert [file.read_bytes() for file in files] == content


def test_one_file(runner: Runner, disk: Path) -> None:
    file, other = make(disk / "file"), make(disk / "other")
    assert result_of(runner.prepare("evict", path=file))["files"] == 1
    assert (cached(file), cached(other)) == (0, SIZE)


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
    plan = runner.prepare("evict", path=disk / "tree")
    files[0].parent.rename(disk / "tree/moved")
    (disk / "tree/d").symlink_to(disk / "outside")
    result = result_of(plan)
    assert result["files"] + result["skipped"] == 3
    assert cached(outside) == SIZE


def test_files_that_go_or_may_not_be_opened(runner: Runner, disk: Path) -> None:
    files = [make(disk / f"f{number}") for number in range(20)]
    plan = runner.prepare("evict", path=disk)
    for file in files[:5]:
        file.unlink()
    result = result_of(plan)
    assert (result["files"], result["skipped"]) == (15, 5)
    assert sum(count for key, count in result.items() if key.startswith("skipped_")) == 5

    def as_nobody() -> dict[str, int]:
        os.setresgid(65534, 65534, 65534)
        os.setresuid(65534, 65534, 65534)
        return result_of(runner.prepare("evict", path=disk))

    files[6].chmod(0o600)
    (disk / "closed").mkdir(0o700)
    result = run_forked(as_nobody)
    assert (result["files"], result["skipped"], result["skipped_EACCES"]) == (14, 2, 2)


def test_a_task_that_could_evict_nothing_fails(runner: Runner, disk: Path) -> None:
    (disk / "tree").mkdir()
    file = make(disk / "tree/file")

    def as_nobody() -> tuple[int, str]:
        os.setresgid(65534, 65534, 65534)
        os.setresuid(65534, 65534, 65534)
        try:
            plan = runner.prepare("evict", path=disk / "tree")
            outcome = Job(plan.nodes, plan.control).run()
        except KtaskfsError as error:
            return error.errno, ""
        with pytest.raises(Finding) as caught:
            plan.finish(outcome)
        return caught.value.errno, caught.value.result

    file.chmod(0o600)
    expected = "files 0\nbytes 0\nskipped 1\nmounts 0\nskipped_EACCES 1\n"
    assert run_forked(as_nobody) == [errno.EACCES, expected]
    (disk / "tree").chmod(0o700)
    assert run_forked(as_nobody) == [errno.EACCES, ""]
    file.unlink()
    assert result_of(runner.prepare("evict", path=disk / "tree"))["files"] == 0  # there is nothing to do


def test_a_call_that_is_missing_is_no_reason_to_skip(
    runner: Runner, disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(disk / "file")
    plan = runner.prepare("evict", path=disk)

    def missing(*arguments: object) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(os, "posix_fadvise", missing)
    assert runner.failure(plan).errno == errno.ENOSYS


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
    rest = [Node(0, 10, -1), Node(40, 10, -1), Node(60, 10, -1)]
    assert result_of(runner.prepare("evict", rest, path=disk))["files"] == 20
    assert sum(cached(file) == 0 for file in files) == 20
    assert result_of(runner.prepare("evict", [Node(10, 30, -1)], path=disk))["files"] == 30
    assert sum(cached(file) for file in files) == 0


def test_positions_are_ordinals_and_keep_nothing(runner: Runner, disk: Path) -> None:
    for number in range(40):
        (disk / f"f{number}").touch()
    plan = runner.prepare("evict", path=disk, nodes="0")
    outcome = Job(plan.nodes, plan.control).run()
    place = plan.nodes[0].start
    assert place.__index__() == 0
    assert place.paths == ()
    assert parsed(plan.finish(outcome))["files"] == 40


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
