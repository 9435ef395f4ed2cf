"""Opening below a directory: the same with openat2(2) and without it."""

from __future__ import annotations

import ctypes
import errno
import os
import subprocess
from typing import TYPE_CHECKING, Protocol

import pytest

from ktaskfs.host import syscalls, tree
from ktaskfs.host.kernel import Kernel
from tests.support.forked import run_forked

if TYPE_CHECKING:
    from pathlib import Path


class Opener(Protocol):
    def __call__(self, directory: int, path: str, *, cross_mounts: bool) -> int: ...


def missing(*arguments: object) -> int:
    raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))


both = pytest.mark.parametrize("opener", [tree.open_beneath, tree.open_by_components])


@pytest.fixture
def top(tmp_path: Path) -> Path:
    top = tmp_path / "top"
    (top / "a/b").mkdir(parents=True)
    (top / "a/b/file").write_text("inside")
    (tmp_path / "outside").write_text("outside")
    (top / "out").symlink_to(tmp_path)
    (top / "in").symlink_to("a")
    (top / "a/last").symlink_to("b/file")
    return top


def opened(opener: Opener, top: Path, path: str, *, cross_mounts: bool = False) -> str | int:
    """Where the descriptor leads, or the errno. No descriptor may be left."""
    directory = os.open(top, os.O_PATH)
    before = os.listdir("/proc/self/fd")
    try:
        fd = opener(directory, path, cross_mounts=cross_mounts)
    except OSError as error:
        assert os.listdir("/proc/self/fd") == before
        return error.errno or 0
    else:
        assert not os.get_inheritable(fd)
        found = os.readlink(f"/proc/self/fd/{fd}")
        os.close(fd)
        return found
    finally:
        os.close(directory)


@both
@pytest.mark.parametrize(
    ("path", "expected"),
    [
        (".", ""),
        ("a", "/a"),
        ("a/b/file", "/a/b/file"),
        ("a//b/./file", "/a/b/file"),
        ("a/b/", "/a/b"),
        ("a/last", "/a/last"),
        ("in", "/in"),
        ("", errno.ENOENT),
        ("none", errno.ENOENT),
        ("a/none/file", errno.ENOENT),
        ("a/b/file/x", errno.ENOTDIR),
        ("a/b/file/", errno.ENOTDIR),
        ("in/b/file", errno.ELOOP),
        ("in/", errno.ELOOP),
        ("a/last/", errno.ELOOP),
        ("out/outside", errno.ELOOP),
        ("../outside", errno.EXDEV),
        ("/etc/passwd", errno.EXDEV),
    ],
)
def test_no_path_leads_out_or_through_a_link(opener: Opener, top: Path, path: str, expected: str | int) -> None:
    assert opened(opener, top, path) == (f"{top}{expected}" if isinstance(expected, str) else expected)


@both
@pytest.mark.parametrize("kind", ["directory", "file"])
def test_mounts_below(opener: Opener, top: Path, root: None, kind: str) -> None:
    """A bind mount has the device number of its source."""
    source, target = (top / "a/b", top / "c") if kind == "directory" else (top / "a/b/file", top / "d")
    if kind == "directory":
        target.mkdir()
    else:
        target.touch()
    subprocess.run(["mount", "--bind", source, target], check=True)
    try:
        path = "c/file" if kind == "directory" else "d"
        assert opened(opener, top, target.name) == errno.EXDEV
        assert opened(opener, top, path) == errno.EXDEV
        assert opened(opener, top, path, cross_mounts=True) == f"{top}/{path}"
        if target.is_dir():  # where the way begins may be a mount
            assert opened(opener, target, "file") == str(target / "file")
    finally:
        subprocess.run(["umount", target], check=True)


@pytest.mark.parametrize("links", [False, True])
@pytest.mark.parametrize("has_openat2", [False, True])
def test_a_file_mounted_on_a_file_is_in_the_tree(
    top: Path, monkeypatch: pytest.MonkeyPatch, root: None, links: bool, has_openat2: bool
) -> None:
    """A mounted directory is not, with everything below it."""
    if not has_openat2:
        monkeypatch.setattr(syscalls, "openat2", missing)
    (top / "c").mkdir()
    (top / "d").touch()
    directory = os.open(top, os.O_PATH)
    found = tree.Tree(directory, cross_mounts=False, links=links)
    for source, target in ((top / "a/b", top / "c"), (top.parent / "outside", top / "d")):
        subprocess.run(["mount", "--bind", source, target], check=True)
    try:
        assert found.status("d").st_ino == (top.parent / "outside").stat().st_ino
        for path in ("c", "c/file"):
            with pytest.raises(OSError, match="cross-device") as caught:
                found.open(path)
            assert caught.value.errno == errno.EXDEV
    finally:
        for name in ("c", "d"):
            subprocess.run(["umount", top / name], check=True)
        os.close(directory)


@both
def test_a_directory_that_may_not_be_searched(opener: Opener, top: Path, root: None) -> None:
    (top / "a").chmod(0o700)
    directory = os.open(top, os.O_PATH)

    def as_nobody() -> int | None:
        os.setresuid(65534, 65534, 65534)
        with pytest.raises(PermissionError) as caught:
            opener(directory, "a/b", cross_mounts=False)
        return caught.value.errno

    assert run_forked(as_nobody) == errno.EACCES
    os.close(directory)


def test_without_openat2(top: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A whole tree is walked all the same. Other errors of openat2 are passed on."""
    monkeypatch.setattr(syscalls, "openat2", missing)
    kernel = Kernel.open()
    directory = os.open(top, os.O_PATH)
    found = tree.Tree(directory, cross_mounts=False)
    walk = tree.Walk(kernel, found)
    assert [each.directory + each.name for each in walk] == ["a/b/file"]
    assert (walk.errors, walk.mounts) == ({}, 0)
    fd = found.open_regular(kernel, "a/b/file")
    assert os.read(fd, 100) == b"inside"
    for each in (fd, directory):
        os.close(each)
    kernel.close()


def test_a_mount_is_not_crossed_where_it_cannot_be_told(top: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A filter refuses statx(2) too."""

    def forbidden(*arguments: object) -> int:
        ctypes.set_errno(errno.EPERM)
        return -1

    monkeypatch.setattr(syscalls, "_statx", forbidden)
    assert opened(tree.open_by_components, top, "a") == errno.ENOSYS
