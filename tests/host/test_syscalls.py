from __future__ import annotations

import errno
import os
import subprocess
import threading
from pathlib import Path

import pytest

from ktaskfs.host import syscalls
from ktaskfs.host.mapping import Mapping
from tests.support.forked import run_forked

PAGE = syscalls.page_size()


def memfd(size: int) -> int:
    fd = os.memfd_create("test")
    os.ftruncate(fd, size)
    return fd


def test_a_failing_call_raises_the_kernels_errno() -> None:
    with pytest.raises(OSError) as caught:  # noqa: PT011
        syscalls.fallocate(-1, 0, 0, PAGE)
    assert caught.value.errno == errno.EBADF
    with pytest.raises(OSError, match="Invalid argument") as caught:
        syscalls.mmap(0, 1, PAGE, syscalls.PROT_READ, syscalls.MAP_SHARED)
    assert caught.value.errno == errno.EINVAL


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
        present, missing = syscalls.page_nodes([mapping.address + PAGE, mapping.address])
        assert present >= 0
        assert missing == -errno.ENOENT or missing == -errno.EFAULT
        assert syscalls.move_pages([mapping.address + PAGE], [present]) == [present]
        syscalls.mbind(mapping.address, mapping.length, syscalls.MPOL_PREFERRED, [0])
    os.close(fd)


def test_a_memory_policy_names_nodes() -> None:
    def policies() -> list[int]:
        syscalls.set_mempolicy(syscalls.MPOL_PREFERRED, [0])
        syscalls.set_mempolicy(syscalls.MPOL_DEFAULT, [])
        try:
            syscalls.set_mempolicy(syscalls.MPOL_BIND, [1023])
        except OSError as error:
            return [error.errno or 0]
        return []

    assert run_forked(policies) == [errno.EINVAL]
