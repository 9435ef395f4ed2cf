from __future__ import annotations

import ctypes
import errno
import os
import subprocess
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ktaskfs.host import numa_pages, statx, syscalls
from ktaskfs.host.mapping import Mapping
from ktaskfs.libc import LIBC
from ktaskfs.units import parse_cpulist
from tests.support.forked import run_forked

if TYPE_CHECKING:
    from collections.abc import Callable

PAGE = syscalls.page_size()


def memfd(size: int) -> int:
    fd = os.memfd_create("test")
    os.ftruncate(fd, size)
    return fd


def test_a_failing_call_raises_the_kernels_errno() -> None:
    with pytest.raises(OSError, match="Bad file descriptor") as caught:
        syscalls.fallocate(-1, 0, 0, PAGE)
    assert caught.value.errno == errno.EBADF
    with pytest.raises(OSError, match="Invalid argument") as caught:
        syscalls.mmap(0, 1, PAGE, syscalls.PROT_READ, syscalls.MAP_SHARED)
    assert caught.value.errno == errno.EINVAL


def test_a_filesystem_that_does_not_tell_its_type(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel passes statfs(2) on to a server of FUSE, which need not have it."""
    number = errno.ENOSYS

    def fails(*arguments: object) -> int:
        ctypes.set_errno(number)
        return -1

    monkeypatch.setattr(syscalls, "_fstatfs", fails)
    assert syscalls.filesystem_magic(0) == 0
    number = errno.EIO
    with pytest.raises(OSError, match="Input/output error"):
        syscalls.filesystem_magic(0)


def test_a_call_that_a_signal_ended_is_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the standard library does it: a process that is stopped and goes on has no error."""
    calls = []

    def interrupted(number: int, original: Callable[..., int]) -> Callable[..., int]:
        def call(*arguments: object) -> int:
            calls.append(number)
            if calls.count(number) < 3:
                ctypes.set_errno(errno.EINTR)
                return -1
            return original(*arguments)

        return call

    for number, name in enumerate(("_fallocate", "_fstatfs", "_openat2")):
        monkeypatch.setattr(syscalls, name, interrupted(number, getattr(syscalls, name)))
    fd = memfd(0)
    syscalls.fallocate(fd, 0, 0, PAGE)
    assert (os.fstat(fd).st_size, syscalls.filesystem_magic(fd)) == (PAGE, syscalls.TMPFS_MAGIC)
    os.close(fd)
    os.close(syscalls.openat2(-1, "/", os.O_PATH, 0))
    assert sorted(calls) == [0] * 3 + [1] * 3 + [2] * 3


def test_the_filesystem_type_is_what_stat_says(tmp_path: Path) -> None:
    for path in (str(tmp_path), "/proc", "/dev/shm"):
        fd = os.open(path, os.O_PATH)
        expected = subprocess.run(["stat", "-f", "-c", "%t", path], capture_output=True, text=True, check=True)
        assert syscalls.filesystem_magic(fd) == int(expected.stdout, 16)
        os.close(fd)


def test_a_thread_is_named_and_the_kernel_cuts_the_name() -> None:
    names = []

    def body() -> None:
        syscalls.set_thread_name("ktask/a-name-beyond-15")
        names.append(Path(f"/proc/self/task/{threading.get_native_id()}/comm").read_text())

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    assert names == ["ktask/a-name-be\n"]


def test_capabilities_are_those_of_proc() -> None:
    status = dict(line.split(":\t") for line in Path("/proc/thread-self/status").read_text().splitlines())
    effective, permitted, inheritable = syscalls.capget()
    assert [effective, permitted, inheritable] == [int(status[key], 16) for key in ("CapEff", "CapPrm", "CapInh")]


def test_capset_takes_away() -> None:
    def drop() -> list[int]:
        syscalls.capset(0, 1 << 40 & syscalls.capget()[1], 0)
        return list(syscalls.capget())

    effective, permitted, inheritable = run_forked(drop)
    assert (effective, inheritable) == (0, 0)
    assert permitted & ~(1 << 40) == 0


def test_page_nodes_tells_present_from_missing() -> None:
    fd = memfd(4 * PAGE)
    with Mapping(fd, 0, 4 * PAGE, reserve=False) as mapping:
        mapping.populate_write(PAGE, PAGE)
        present, missing = numa_pages.page_nodes([mapping.address + PAGE, mapping.address])
        assert present >= 0
        assert missing in (-errno.ENOENT, -errno.EFAULT)
        assert numa_pages.move_pages([mapping.address + PAGE], [present]) == [present]
    os.close(fd)


def test_the_policy_that_a_mapping_has() -> None:
    """Set with mbind(2): a file of memory keeps it for all who map it."""
    mbind = {"x86_64": 237, "aarch64": 235}.get(os.uname().machine)
    if mbind is None:
        pytest.skip("the number of mbind(2) is unknown here")
    fd, mask = memfd(4 * PAGE), ctypes.c_ulong(1)
    with Mapping(fd, 0, 4 * PAGE, reserve=False) as mapping:
        assert numa_pages.nodes_of_policy(mapping.address) == frozenset()
        start = ctypes.c_ulong(mapping.address + PAGE)
        bind, size = ctypes.c_long(2), ctypes.c_ulong(PAGE)
        place = ctypes.byref(mask), ctypes.c_ulong(64), ctypes.c_ulong(0)
        assert LIBC.syscall(ctypes.c_long(mbind), start, size, bind, *place) == 0
    with Mapping(fd, 0, 4 * PAGE, reserve=False, private=True) as mapping:
        found = [numa_pages.nodes_of_policy(mapping.address + page * PAGE) for page in range(3)]
        assert found == [frozenset(), frozenset({0}), frozenset()]
    os.close(fd)


def test_the_nodes_that_a_process_may_use() -> None:
    status = Path("/proc/self/status").read_text()
    allowed = next(line.split()[1] for line in status.splitlines() if line.startswith("Mems_allowed_list:"))
    assert numa_pages.allowed_nodes() == frozenset(parse_cpulist(allowed))


def test_the_time_of_birth(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Like stat(1), which prints 0 for an unknown time."""
    (tmp_path / "file").touch()
    seconds = subprocess.run(["stat", "-c", "%W", tmp_path / "file"], capture_output=True, check=True, text=True)
    assert statx.birth_time(str(tmp_path / "file")) // 10**9 == int(seconds.stdout)
    with pytest.raises(FileNotFoundError):
        statx.birth_time(str(tmp_path / "none"))

    def forbidden(*arguments: object) -> int:
        ctypes.set_errno(errno.EPERM)
        return -1

    monkeypatch.setattr(syscalls, "_statx", forbidden)
    assert statx.birth_time(str(tmp_path / "file")) == 0


def test_attributes(tmp_path: Path) -> None:
    for path, expected in ((Path("/proc"), True), (tmp_path, False)):
        fd = os.open(path, os.O_PATH)
        assert bool(statx.attributes(fd) & statx.STATX_ATTR_MOUNT_ROOT) == expected
        os.close(fd)
