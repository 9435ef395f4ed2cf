"""A caller with uid 0, no capability, and read-only /proc and /sys, as in a container without a user namespace."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

import psutil
import pytest

from tests.attacks.callers import WEAK_ROOT, wait_for_worker
from tests.support import filesystems
from tests.support.hugepages import reserved
from tests.support.poll import until
from tests.support.shell import run

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import MountMaker

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can be root without capabilities"),
    pytest.mark.usefixtures("patient"),
]

BREAK_IN = """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
pid, gained = int(sys.argv[1]), []

def attempt(what, function):
    try:
        result = function()
    except OSError:
        return
    if result != -1:
        gained.append(what)

attempt("mem", lambda: os.open(f"/proc/{pid}/mem", os.O_RDWR))
attempt("root", lambda: os.listdir(f"/proc/{pid}/root/"))
attempt("maps", lambda: len(open(f"/proc/{pid}/maps").read()))
for fd in range(64):
    held = f"/proc/{pid}/fd/{fd}"
    attempt("write to sys", lambda: os.open(f"{held}/kernel/mm/transparent_hugepage/enabled", os.O_WRONLY))
    attempt("write to proc", lambda: os.open(f"{held}/sys/fs/lease-break-time", os.O_WRONLY))
    attempt("pidfd_getfd", lambda: libc.syscall(438, os.pidfd_open(pid), fd, 0))
attempt("ptrace", lambda: libc.ptrace(16, pid, 0, 0))  # PTRACE_ATTACH
print(*sorted(set(gained)))
"""


def break_in(pid: int) -> list[str]:
    """The access of the weak root to the process ``pid``."""
    outcome = run(*WEAK_ROOT, sys.executable, "-I", "-c", BREAK_IN, str(pid))
    assert outcome.status == 0, outcome.err
    return outcome.out.split()


def test_the_attack_works_on_a_process_of_its_own() -> None:
    """Otherwise the tests here show nothing."""
    outcome = run(*WEAK_ROOT, "sh", "-c", f'sleep 60 & {sys.executable} -I -c "$1" $!; kill -9 $!', "sh", BREAK_IN)
    assert {"maps", "ptrace", "pidfd_getfd"} <= set(outcome.out.split()), outcome.err
    outcome = run(*WEAK_ROOT, "bash", "-c", "cat /proc/sys/fs/lease-break-time > /proc/sys/fs/lease-break-time")
    assert outcome.errname == "EROFS", outcome.err


def test_it_gets_nothing_out_of_its_worker(mount_maker: MountMaker, memory: Path) -> None:
    mount = mount_maker("mode=0666")
    spec = f"fallocate path={memory}/file length=4M chunk=4K rate_max=1 name=held"
    outcome = run(*WEAK_ROOT, "bash", "-c", 'echo "$1" > "$2"', "-", spec, str(mount.path / "tasks/control"))
    assert outcome.status == 0, outcome.err
    gained = break_in(wait_for_worker(mount, "held"))
    assert mount.write("tasks/held/control", "kill") == (0, None)
    assert gained == []


def test_it_gets_nothing_out_of_the_spawner_and_the_worker_forked_ahead(mount_maker: MountMaker) -> None:
    mount = mount_maker("mode=0666")
    daemon = psutil.Process(mount.pid)
    until(lambda: len(daemon.children(recursive=True)) == 2, "the spawner and a worker forked ahead")
    for process in (daemon, *daemon.children(recursive=True)):
        assert break_in(process.pid) == []


def test_a_link_into_what_its_worker_holds_leads_to_nothing(mount_maker: MountMaker, memory: Path) -> None:
    """Where its own /proc is masked, the worker's is not."""
    mount = mount_maker("mode=0666")
    control = str(mount.path / "tasks/control")
    for fd in range(3, 12):
        for name in ("version", "sys/fs/lease-break-time", "1/environ", "1/root/etc/passwd"):
            (memory / f"{fd}-{name.replace('/', '-')}").symlink_to(f"/proc/self/fd/{fd}/{name}")
    for link in sorted(memory.iterdir()):
        outcome = run(*WEAK_ROOT, "bash", "-c", 'echo "$1" > "$2"', "-", f"checksum path={link}", control)
        assert outcome.status != 0, (link, os.readlink(link))


def test_it_cannot_change_a_pool_that_its_own_sys_keeps_from_it(mount_maker: MountMaker) -> None:
    mount = mount_maker("mode=0666")
    size = filesystems.page_sizes()[0]
    with reserved(size, 0) as pool:
        spec = f"reserve size={size} pages={pool.total} name=pool"
        outcome = run(*WEAK_ROOT, "bash", "-c", 'echo "$1" > "$2"', "-", spec, str(mount.path / "tasks/control"))
        assert outcome.errname == "EROFS", outcome.err
        assert mount.write("tasks/control", spec) == (0, None)  # root itself may
        assert mount.read("tasks/pool/wait").endswith("done\n")
