"""The list of the files of a tree: which are in it, and how positions mean their bytes."""

from __future__ import annotations

import errno
import itertools
import os
import socket
import subprocess
import tempfile
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ktaskfs.errors import TargetError
from ktaskfs.host import syscalls
from ktaskfs.host.kernel import Kernel
from ktaskfs.host.tree import Tree
from ktaskfs.operations.trees._files import COST, FileList, Which
from tests.support import filesystems
from tests.support.forked import run_forked
from tests.support.resident import resident

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MIB = 1 << 20
ORDINARY = Which()


@contextmanager
def listed(top: Path | str, which: Which = ORDINARY, *, links: bool = False, cross: bool = False) -> Iterator[FileList]:
    kernel = Kernel.open()
    fd = os.open(top, os.O_PATH)
    try:
        yield FileList(kernel, Tree(fd, cross, links), str(top), which)
    finally:
        os.close(fd)
        kernel.close()


def names(top: Path, *, links: bool = False, once: bool = True, cross: bool = False) -> list[str]:
    with listed(top, Which(once=once), links=links, cross=cross) as files:
        return sorted(files.path(index) for index in range(len(files)))


@given(
    st.lists(st.sampled_from([0, 1, 4095, 4096, 4097, 5 * MIB, 8 * MIB + 1]), max_size=6),
    st.lists(st.integers(0, 40 * MIB), max_size=6),
    st.sampled_from([Which(COST), Which(1, 4096), Which(64 << 10, align=MIB), Which(16 << 10, align=4 * MIB)]),
    st.sampled_from([1, 2 * MIB]),
)
@settings(max_examples=60, deadline=None)
def test_every_byte_is_in_one_chunk(sizes: list[int], cuts: list[int], which: Which, page: int) -> None:
    cost, unit = which.cost, which.unit
    with tempfile.TemporaryDirectory() as top:
        for number, size in enumerate(sizes):
            with open(f"{top}/{number}", "wb") as file:
                file.truncate(size)
        with listed(top, which) as files:
            assert files.total == sum(-(-size // unit) + cost for size in sizes)
            edges = sorted({0, files.total, *(cut // unit for cut in cuts if cut // unit < files.total)})
            chunks = list(itertools.pairwise(edges))
            pieces = [piece for chunk in chunks for piece in files.pieces(*chunk, page)]
            begun = [index for chunk in chunks for index in files.begun(*chunk)]
    assert begun == list(range(len(sizes)))
    assert sum(piece.is_last for piece in pieces) == len(sizes)
    at = dict.fromkeys(range(len(sizes)), 0)
    for piece in pieces:
        assert piece.start == at[piece.file]
        assert piece.is_last or not piece.end % max(which.align, page)
        at[piece.file] = piece.end
    assert sorted(at.values()) == sorted(sizes)


def test_names_of_any_bytes(tmp_path: Path) -> None:
    expected = ["a\nb/c\td", "a\nb/\udcff\udcfe", "deep/er/and/deep/er", "ü", " "]
    for name in expected:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name, errors="surrogateescape")
    assert names(tmp_path) == sorted(expected)
    with listed(tmp_path) as files:
        for index in range(len(files)):
            fd = files.open(index)
            assert os.read(fd, 100) == os.fsencode(files.path(index))
            os.close(fd)


def test_only_regular_files(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "to-fifo").symlink_to("fifo")
    (tmp_path / "to-null").symlink_to("/dev/null")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket"))
        for links in (False, True):
            assert names(tmp_path, links=links, cross=True) == ["file"]


def test_circles_and_links_that_lead_nowhere(tmp_path: Path) -> None:
    top, outside = tmp_path / "top", tmp_path / "outside"
    for directory in (top / "a", outside):
        directory.mkdir(parents=True)
    (top / "a/file").touch()
    (outside / "beyond").touch()
    (outside / "back").symlink_to(top)
    links = {"a/up": "..", "self": "self", "none": "nowhere", "out": str(outside), "again": "a/file"}
    for name, target in (links | {"absolute": str(outside / "beyond")}).items():
        (top / name).symlink_to(target)
    os.link(top / "a/file", top / "hard")
    with listed(top, links=True) as files:
        assert len(files) == 2
        assert files.walk.errors == {errno.ELOOP: 1, errno.ENOENT: 1}
        assert sorted(files.walk.left) == [(errno.ENOENT, "none"), (errno.ELOOP, "self")]
    every = names(top, links=True, once=False)
    assert {"absolute", "again", "hard"} <= set(every)
    assert len(every) == 5, "each file by each of its names, each directory once"
    assert names(top) in (["a/file"], ["hard"])
    assert names(top, once=False) == ["a/file", "hard"]


def test_links_without_openat2(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*arguments: object) -> int:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    (tmp_path / "top").mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "top/link").symlink_to("../file")
    monkeypatch.setattr(syscalls, "openat2", missing)
    assert names(tmp_path / "top", links=True) == ["link"]


def test_links_into_another_mount(tmp_path: Path, root: None) -> None:
    (tmp_path / "top").mkdir()
    with filesystems.tmpfs(tmp_path / "other", MIB) as other:
        (other / "file").touch()
        (tmp_path / "top/link").symlink_to(other / "file")
        (tmp_path / "top/directory").symlink_to(other)
        with listed(tmp_path / "top", links=True) as files:
            assert (len(files), files.walk.mounts) == (0, 2)
        assert len(names(tmp_path / "top", links=True, cross=True)) == 1


def test_links_of_proc_are_refused(tmp_path: Path) -> None:
    """They would lead to the worker's own files, or past all walls."""
    (tmp_path / "top").mkdir()
    (tmp_path / "top/link").symlink_to("/proc/self/exe")
    with listed(tmp_path / "top", links=True, cross=True) as files:
        assert (len(files), files.walk.errors) == (0, {errno.ELOOP: 1})


def test_what_changes_the_fingerprint(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    file = tmp_path / "d/file"
    file.write_bytes(b"x" * 100)

    def fingerprint() -> int:
        with listed(tmp_path) as files:
            return files.fingerprint

    found = [fingerprint()]
    file.read_bytes()
    file.chmod(0o600)
    assert fingerprint() == found[0]
    os.utime(file, ns=(0, 1))
    found.append(fingerprint())
    file.rename(tmp_path / "d/other")
    found.append(fingerprint())
    (tmp_path / "e").touch()
    found.append(fingerprint())
    for which in (Which(1), Which(unit=4096), Which(align=MIB)):
        with listed(tmp_path, which) as files:
            found.append(files.fingerprint)
    assert len(set(found)) == len(found) == 7


def test_times_of_any_year(area: Path, root: None) -> None:
    """Anybody may set such times: tmpfs, XFS, btrfs and ext4 keep some of them."""
    with filesystems.tmpfs(area / "old", MIB) as top:
        for year, second in {"1500": -14831769600, "1969": -1, "2400": 13569465600}.items():
            (top / year).touch()
            os.utime(top / year, ns=(0, second * 10**9 + 5))
        with listed(top) as files:
            assert len(files) == 3
            for index in range(3):
                path = top / files.path(index)
                assert files.is_as_found(index, path.stat())
                os.utime(path, ns=(0, 6))
                assert not files.is_as_found(index, path.stat())


def test_more_bytes_than_positions(area: Path, root: None) -> None:
    with filesystems.tmpfs(area / "sparse", MIB) as top:
        for name in ("a", "b"):
            (top / name).touch()
            os.truncate(top / name, 2**63 - 1)
        with pytest.raises(TargetError) as caught, listed(top):
            pass
        assert caught.value.errno == errno.EFBIG
        (top / "b").unlink()
        with listed(top) as files:
            assert files.total == 2**63 - 1 + COST


def test_a_walk_that_nobody_waits_for_ends(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    kernel = Kernel.open()
    fd = os.open(tmp_path, os.O_PATH)
    with pytest.raises(TargetError) as caught:
        FileList(kernel._replace(abandoned=lambda: True), Tree(fd, cross_mounts=False), "x", Which())
    assert caught.value.errno == errno.ECANCELED
    os.close(fd)
    kernel.close()


def test_a_hundred_thousand_files(area: Path, root: None) -> None:
    """In one directory and in many: the list takes some forty bytes of each."""

    def growth() -> list[int]:
        before = resident(os.getpid())
        with listed(top) as files:
            return [len(files), files.total, resident(os.getpid()) - before]

    with filesystems.tmpfs(area / "many", 256 * MIB, "nr_inodes=0") as top:
        script = 'for my $d (0..100) { mkdir "d$d"; for (1..($d ? 500 : 50000)) { open my $f, ">", "d$d/file-$_" } }'
        subprocess.run(["perl", "-e", script], cwd=top, check=True)
        count, total, grown = run_forked(growth)
    assert (count, total) == (100_000, 100_000 * COST)
    assert grown < 100_000 * 100
