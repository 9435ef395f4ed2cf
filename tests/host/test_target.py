from __future__ import annotations

import errno
import os
import socket
import stat
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ktaskfs.errors import InvalidValue, KtaskfsError, NotSupported, TargetError
from ktaskfs.host import target as targets
from ktaskfs.host.target import MEMORY, FilesystemType, open_target
from tests.support.forked import run_forked

if TYPE_CHECKING:
    from ktaskfs.host.kernel import Kernel

NOBODY = 65534
ALL = frozenset(FilesystemType)


def refusal(kernel: Kernel, path: str | Path, *, create: int | None = None) -> KtaskfsError:
    before = os.listdir("/proc/self/fd")
    with pytest.raises(KtaskfsError) as caught:
        open_target(kernel, str(path), kinds=MEMORY, create=create)
    assert os.listdir("/proc/self/fd") == before
    return caught.value


def test_what_is_not_a_regular_file_is_not_opened(kernel: Kernel, tmpfs: Path) -> None:
    os.mkfifo(tmpfs / "fifo")
    os.mknod(tmpfs / "device", stat.S_IFCHR | 0o600, os.makedev(1, 3))
    (tmpfs / "directory").mkdir()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmpfs / "socket"))
    for name, number in (("fifo", 22), ("device", 22), ("socket", 22), ("directory", errno.EISDIR)):
        for create in (None, 0o600):
            error = refusal(kernel, tmpfs / name, create=create)
            assert (type(error), error.errno, name in error.message) == (TargetError, number, True)


def test_the_systems_own_errors(kernel: Kernel, tmpfs: Path) -> None:
    (tmpfs / "a").symlink_to("b")
    (tmpfs / "b").symlink_to("a")
    (tmpfs / "nowhere").symlink_to("missing")
    (tmpfs / "file").touch()
    assert refusal(kernel, tmpfs / "a").errno == errno.ELOOP
    assert refusal(kernel, tmpfs / "a", create=0o600).errno == errno.ELOOP
    assert refusal(kernel, tmpfs / "missing").errno == errno.ENOENT
    assert refusal(kernel, tmpfs / "missing" / "file", create=0o600).errno == errno.ENOENT
    assert refusal(kernel, tmpfs / "nowhere", create=0o600).errno == errno.ENOENT
    assert refusal(kernel, tmpfs / "file" / "x", create=0o600).errno == errno.ENOTDIR
    assert refusal(kernel, f"{tmpfs}/new/", create=0o600).errno == errno.ENOENT
    assert refusal(kernel, tmpfs / ("x" * 300), create=0o600).errno == errno.ENAMETOOLONG
    assert sorted(path.name for path in tmpfs.iterdir()) == ["a", "b", "file", "nowhere"]


def test_another_filesystem_is_not_supported_and_nothing_is_made_there(kernel: Kernel, disk: Path) -> None:
    (disk / "file").touch()
    for path in (disk / "file", Path("/proc/version")):
        assert isinstance(refusal(kernel, path), NotSupported)
    with pytest.raises(NotSupported, match="a file of /proc"):
        open_target(kernel, "/proc/version", kinds=ALL, write=False)
    assert isinstance(refusal(kernel, disk / "new", create=0o600), NotSupported)
    assert not (disk / "new").exists()


def test_the_workers_own_descriptors_are_not_meant(kernel: Kernel) -> None:
    for path in (
        "/proc/self/fd/3",
        "//proc/self",
        "/proc/./self/fd/3",
        "/sys/../proc/thread-self/fd/0",
        "/dev/fd/3",
        "/dev/stdin",
        "/dev/stdout",
    ):
        error = refusal(kernel, path)
        assert isinstance(error, InvalidValue)
        assert "/proc/PID/fd/N" in error.message
    assert refusal(kernel, "/dev/fdx").errno == errno.ENOENT


def test_creating(kernel: Kernel, tmpfs: Path) -> None:
    (tmpfs / "to").symlink_to(".")
    old = os.umask(0o027)
    try:
        target = open_target(kernel, f"{tmpfs}/to/new", kinds=MEMORY, create=0o666)
    finally:
        os.umask(old)
    assert target.created
    assert (tmpfs / "new").stat().st_mode == stat.S_IFREG | 0o640
    assert (target.name, os.fstat(target.fd).st_ino) == ("new", (tmpfs / "new").stat().st_ino)
    target.close()


def test_an_existing_file_is_neither_truncated_nor_chosen_by_name_twice(kernel: Kernel, tmpfs: Path) -> None:
    (tmpfs / "file").write_bytes(b"abc")
    target = open_target(kernel, str(tmpfs / "file"), kinds=MEMORY, create=0o600)
    assert not target.created
    assert target.size() == 3
    assert (target.filesystem, target.page_size) == (FilesystemType.TMPFS, 4096)
    assert target.allocated() == (tmpfs / "file").stat().st_blocks * 512 > 0
    target.close()


def test_what_was_looked_at_is_opened_wherever_the_path_leads_by_then(
    kernel: Kernel, tmpfs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmpfs / "file").touch()
    os.mkfifo(tmpfs / "fifo")
    (tmpfs / "link").symlink_to("file")
    (tmpfs / "new").symlink_to("fifo")
    require_regular = targets._require_regular

    def look_and_flip(handle: int, path: str) -> None:
        require_regular(handle, path)
        (tmpfs / "new").rename(tmpfs / "link")

    monkeypatch.setattr(targets, "_require_regular", look_and_flip)
    opened = open_target(kernel, str(tmpfs / "link"), kinds=MEMORY)
    assert os.path.samestat(os.fstat(opened.fd), (tmpfs / "file").stat())
    assert (tmpfs / "link").is_fifo()
    opened.close()


def test_hugetlbfs_says_its_page_size(kernel: Kernel, hugetlbfs: Path, page_size: int) -> None:
    target = open_target(kernel, str(hugetlbfs / "file"), kinds=MEMORY, create=0o600)
    assert (target.filesystem, target.page_size) == (FilesystemType.HUGETLBFS, page_size)
    target.close()


@pytest.mark.parametrize("flags", [0, os.MFD_HUGETLB])
def test_a_memfd_through_another_process(kernel: Kernel, flags: int) -> None:
    fd = os.memfd_create("test", flags | os.MFD_ALLOW_SEALING)
    path = f"/proc/{os.getpid()}/fd/{fd}"

    def look() -> list[object]:
        os.close(fd)
        target = open_target(kernel, path, kinds=MEMORY, create=0o600)
        return [target.filesystem.value, target.page_size, target.created, target.seals()]

    expected = ["hugetlbfs", 2 << 20] if flags else ["tmpfs", 4096]
    assert run_forked(look) == [*expected, False, 0]
    os.close(fd)
    assert refusal(kernel, path).errno == errno.ENOENT


def test_permissions_are_the_kernels(kernel: Kernel, tmpfs: Path) -> None:
    (tmpfs / "closed").touch(0o600)
    (tmpfs / "readable").touch(0o644)
    (tmpfs / "locked").mkdir(0o700)

    def attempts() -> list[int]:
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
        os.umask(0)
        found = []
        for name, write, create in (
            ("closed", True, None),
            ("readable", True, 0o600),
            ("readable", False, None),
            ("locked/file", True, 0o600),
            ("mine", True, 0o604),
        ):
            try:
                open_target(kernel, str(tmpfs / name), kinds=MEMORY, write=write, create=create)
                found.append(0)
            except TargetError as error:
                found.append(error.errno)
        return found

    assert run_forked(attempts) == [errno.EACCES, errno.EACCES, 0, errno.EACCES, 0]
    assert (tmpfs / "mine").stat().st_uid == NOBODY
    assert (tmpfs / "mine").stat().st_mode & 0o777 == 0o604


def test_in_a_root_directory_without_proc(kernel: Kernel, tmpfs: Path) -> None:
    (tmpfs / "file").touch()
    (tmpfs / "file").chmod(0o666)

    def inside() -> list[object]:
        os.chroot(tmpfs)
        os.chdir("/")
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
        target = open_target(kernel, "/../file", kinds=MEMORY)
        return [target.filesystem.value, os.path.exists("/proc/self"), len(kernel.read_proc("meminfo")) > 0]

    assert run_forked(inside) == ["tmpfs", False, True]


def test_a_read_only_mount(kernel: Kernel, tmpfs: Path) -> None:
    (tmpfs / "file").touch()
    subprocess.run(["mount", "-o", "remount,ro", str(tmpfs)], check=True)
    assert refusal(kernel, tmpfs / "file").errno == errno.EROFS
    assert refusal(kernel, tmpfs / "new", create=0o600).errno == errno.EROFS
    open_target(kernel, str(tmpfs / "file"), kinds=ALL, write=False).close()
