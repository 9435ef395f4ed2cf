"""Block devices as sources, instead of a file on a disk."""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING

import pytest

from ktaskfs.errors import TargetError
from ktaskfs.host.page_cache import read_in_huge_pages
from ktaskfs.span import Span
from tests.operations.trees.ground import as_nobody, parsed

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from tests.support.runner import Place, Runner

MIB = 1 << 20
SIZE = 24 * MIB


@pytest.fixture
def image(disk: Path) -> Path:
    path = disk / "image"
    path.write_bytes(os.urandom(SIZE))
    return path


@pytest.fixture
def device(image: Path, root: None) -> Iterator[str]:
    """A loop device of an image with data all over."""
    command = ["losetup", "--find", "--show", str(image)]
    name = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    yield name
    subprocess.run(["losetup", "--detach", name], check=True)


def test_a_copy_of_a_device(runner: Runner, device: str, image: Path, place: Place) -> None:
    """Into memory, and the same there; as one digest or another."""
    runner.run("copy", source=device, path=place.directory / "copy")
    assert (place.directory / "copy").read_bytes() == image.read_bytes()
    assert runner.result(runner.prepare("compare", source=device, path=place.directory / "copy")) == "equal\n"
    assert runner.result(runner.prepare("checksum", path=device)) == runner.result(
        runner.prepare("checksum", path=image)
    )
    plain = runner.result(runner.prepare("checksum", path=device, algorithm="sha256sum"))
    tool = subprocess.run(["sha256sum", device], capture_output=True, text=True, check=True).stdout
    assert plain == tool
    runner.run("copy", source=device, path=place.directory / "part", source_offset=4096, length=MIB, direct=1)
    size = MIB
    assert (place.directory / "part").read_bytes()[:size] == image.read_bytes()[4096 : 4096 + size]


def test_the_time_of_a_device_says_nothing(runner: Runner, device: str, image: Path, tmpfs: Path) -> None:
    """Udev changes it without a write, and a resume must not be refused for that; the size counts."""

    def tree() -> int:
        plan = runner.prepare("copy", source=device, path=tmpfs / "copy")
        plan.abort()
        return plan.tree

    before, status = tree(), os.stat(device)
    os.utime(device, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    assert tree() == before
    os.truncate(image, SIZE - MIB)
    subprocess.run(["losetup", "--set-capacity", device], check=True)
    assert tree() != before


def test_a_change_of_that_time_is_no_change_of_the_device(
    runner: Runner, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a digest is made of it, and before a resume of what works on its cache."""
    real = os.preadv

    def preadv(fd: int, buffers: Sequence[memoryview], position: int) -> int:
        os.utime(device, ns=(0, os.stat(device).st_mtime_ns + 1))
        return real(fd, buffers, position)

    tool = subprocess.run(["sha256sum", device], capture_output=True, text=True, check=True).stdout
    with monkeypatch.context() as patch:
        patch.setattr(os, "preadv", preadv)
        assert runner.result(runner.prepare("checksum", path=device, algorithm="sha256sum")) == tool
    trees = []
    for _ in range(2):
        plan = runner.prepare("evict", path=device)
        plan.abort()
        trees.append(plan.tree)
        os.utime(device, ns=(0, os.stat(device).st_mtime_ns + 1))
    assert trees[0] == trees[1] != 0


def test_a_device_is_not_read_by_page_faults(device: str) -> None:
    """Its cache has no huge pages, and the faults took three times as long as sendfile(2)."""
    with open(device, "rb") as opened, pytest.raises(OSError, match="not supported"):
        read_in_huge_pages(opened.fileno(), Span(0, 4 * MIB))


def test_what_the_cache_has_of_a_device(runner: Runner, device: str) -> None:
    def resident() -> int:
        result = runner.result(runner.prepare("survey", path=device))
        return parsed(result.partition("left_out")[0])["resident"]

    with open(device, "rb"):  # like a mounted device: the kernel drops the cache of a device that nobody has open
        assert parsed(runner.result(runner.prepare("prefetch", path=device)))["bytes"] == SIZE
        assert resident() == SIZE
        result = parsed(runner.result(runner.prepare("evict", path=device)))
        assert (result["files"], result["bytes"]) == (1, SIZE)
        assert resident() < SIZE


def test_nothing_is_written_to_a_device(runner: Runner, device: str, image: Path) -> None:
    content = image.read_bytes()
    for operation, texts in {
        "clear": {},
        "fill": {"pattern": "00"},
        "free": {},
        "fallocate": {"length": "4096"},
        "copy": {"source": str(image)},
    }.items():
        refused = runner.refused(operation, path=device, **texts)
        assert isinstance(refused, TargetError)
        assert refused.message == f"{device} is not a regular file"
    assert image.read_bytes() == content


def test_another_user_may_not_read_it(runner: Runner, device: str) -> None:
    def refusals() -> list[str]:
        return [runner.refused(name, path=device).message for name in ("checksum", "evict", "prefetch", "survey")]

    assert as_nobody(refusals) == [f"open {device}: Permission denied"] * 4


def test_in_a_tree_a_device_is_left_alone(runner: Runner, device: str, disk: Path) -> None:
    (disk / "tree").mkdir()
    os.mknod(disk / "tree/device", 0o60600, os.stat(device).st_rdev)
    assert parsed(runner.result(runner.prepare("evict", path=disk / "tree")))["files"] == 0
    runner.run("copy", source=disk / "tree", path=disk / "copy")
    assert os.listdir(disk / "copy") == []
