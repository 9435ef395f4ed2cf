"""Each way to hold huge pages, separately, because errors could cancel out. The pool may have pages of others
meanwhile."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from ktaskfs.host import pool_holders
from ktaskfs.host.huge_files import MountedFiles
from ktaskfs.host.huge_mappings import look_at
from ktaskfs.host.page_table import PageTable
from ktaskfs.host.pool_holders import find_holdings
from tests.support import filesystems, huge_holder
from tests.support.forked import run_forked
from tests.support.holding import holding
from tests.support.hugepages import reserved, smallest_pages
from tests.support.processes import halt

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ktaskfs.host.huge_mappings import HugeProcess, Known
    from ktaskfs.host.kernel import Kernel
    from ktaskfs.host.pool_holders import HoldersReport, Holding
    from tests.support.daemon import Mount
    from tests.support.holding import HugeHolder
    from tests.support.users import User

PAGES: Final = 8
FILE: Final = "vm 0"
EXPECTED: Final = {
    "file": ("file", 3, 1),
    "file, nothing touched": ("file", 0, 3),
    "file, nothing reserved": ("file", 1, 0),
    "file, private": ("private", 1, 2),
    "file, open and deleted": ("deleted", 2, 0),
    "file, mapped and deleted": ("deleted", 1, 1),
    "memfd": ("memfd", 2, 1),
    "memfd, closed": ("memfd", 2, 1),
    "shared": ("shared", 1, 2),
    "shared, nothing reserved": ("shared", 1, 0),
    "private": ("private", 1, 2),
    "private, nothing reserved": ("private", 1, 0),
    "private, forked": ("private", 3, 2),
    "sysv": ("sysv", 1, 2),
    "sysv, detached": ("sysv", 1, 2),
}
"""Kind, pages in use and pages reserved."""
assert EXPECTED.keys() == huge_holder.HOW.keys()


@contextlib.contextmanager
def segments_for(user: User) -> Iterator[None]:
    """Let a user make SysV segments of huge pages (vm.hugetlb_shm_group), for a test that holds the pool's lock."""
    file = Path("/proc/sys/vm/hugetlb_shm_group")
    before = file.read_text()
    file.write_text(str(user.gid))
    try:
        yield
    finally:
        file.write_text(before)


def unexplained(report: HoldersReport, page_size: int) -> tuple[int, int]:
    """Pages in use and reserved that the report does not attribute."""
    (pool,) = [each for each in report.pools if each.size == page_size]
    of_it = [each for each in report.holdings if each.page_size == page_size]
    in_use, aside = sum(each.used for each in of_it), sum(each.reserved for each in of_it)
    return pool.total - pool.free - in_use, pool.reserved - aside


def new(before: HoldersReport, after: HoldersReport) -> list[Holding]:
    return [each for each in after.holdings if each not in before.holdings]


@smallest_pages
@pytest.mark.parametrize("how", EXPECTED)
def test_root_sees_each_kind(kernel: Kernel, hugetlbfs: Path, page_size: int, how: str) -> None:
    with reserved(page_size, PAGES):
        before = find_holdings(kernel, os.getpid())
        with holding(how, page_size, hugetlbfs / FILE) as holder:
            after = find_holdings(kernel, os.getpid())
        (found,) = new(before, after)
        assert (found.kind, found.used, found.reserved) == EXPECTED[how]
        assert (found.page_size, found.uid) == (page_size, 0)
        assert unexplained(after, page_size) == unexplained(before, page_size)
        pids = [] if how == "sysv, detached" else [holder.pid]
        assert [each.pid for each in found.processes] == pids + [holder.number] * (how == "private, forked")
        assert found.path == path_of(how, holder, hugetlbfs)
        (hugetlbfs / FILE).unlink(missing_ok=True)


@smallest_pages
def test_private_pages_before_linux_6_7(
    kernel: Kernel, hugetlbfs: Path, page_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the kernel does not find the pages, each is queried."""
    monkeypatch.setattr(PageTable, "_can_scan", lambda table: False)
    with reserved(page_size, PAGES):
        before = find_holdings(kernel, os.getpid())
        with holding("private, forked", page_size, hugetlbfs / FILE):
            (found,) = new(before, find_holdings(kernel, os.getpid()))
    assert (found.kind, found.used, found.reserved) == EXPECTED["private, forked"]


def path_of(how: str, holder: HugeHolder, hugetlbfs: Path) -> str:
    match how.partition(",")[0]:
        case "file":
            return str(hugetlbfs / FILE)
        case "memfd":
            return "a, guest"
        case "sysv":
            return f"shmid {holder.number} key 0x00000000"
        case _:
            return ""


@smallest_pages
@pytest.mark.parametrize("how", EXPECTED)
def test_a_user_sees_the_own(
    kernel: Kernel, hugetlbfs: Path, page_size: int, two_users: tuple[User, User], how: str
) -> None:
    """Limited by the kernel: of files without a path only pages in page tables are known."""
    ann, ben = two_users

    def seen(user: User) -> list[list[object]]:
        os.setresgid(user.gid, user.gid, user.gid)
        os.setresuid(user.uid, user.uid, user.uid)
        report = find_holdings(kernel, os.getpid())
        return [
            [each.kind, each.used, each.reserved, each.uid, len(each.processes)]
            for each in report.holdings
            if user.uid in {each.uid, *(process.uid for process in each.processes)}
        ]

    with reserved(page_size, PAGES):
        directory = hugetlbfs / "of ann"
        directory.mkdir(mode=0o700)
        os.chown(directory, ann.uid, ann.gid)
        with segments_for(ann), holding(how, page_size, directory / FILE, ann):
            found = run_forked(lambda: seen(ann))
            others = run_forked(lambda: seen(ben))
        kind, used, aside = EXPECTED[how]
        assert found == [[kind, used, aside, ann.uid, {"sysv, detached": 0, "private, forked": 2}.get(how, 1)]]
        assert others == []
        (directory / FILE).unlink(missing_ok=True)


@smallest_pages
def test_a_file_that_nobody_has_open(kernel: Kernel, hugetlbfs: Path, page_size: int) -> None:
    with reserved(page_size, PAGES):
        (hugetlbfs / "deeper").mkdir()
        path = hugetlbfs / "deeper" / FILE
        with holding("file", page_size, path):
            pass
        (found,) = [each for each in find_holdings(kernel, os.getpid()).holdings if each.path == str(path)]
        assert (found.kind, found.used, found.reserved, found.processes) == ("file", 3, 0, ())
        path.unlink()


@smallest_pages
@pytest.mark.usefixtures("root")
def test_pages_that_a_mount_has_set_aside(kernel: Kernel, area: Path, page_size: int) -> None:
    with reserved(page_size, PAGES):
        before = find_holdings(kernel, os.getpid())
        with filesystems.hugetlbfs(area / "set aside", page_size, f"min_size={4 * page_size}") as where:
            after = find_holdings(kernel, os.getpid())
            (found,) = new(before, after)
            assert (found.kind, found.path, found.used, found.reserved) == ("mount", str(where), 0, 4)
            assert unexplained(after, page_size) == unexplained(before, page_size)
            with holding("file", page_size, where / FILE), holding("file, private", page_size, where / "other"):
                after = find_holdings(kernel, os.getpid())
            assert {(each.kind, each.used, each.reserved) for each in new(before, after)} == {
                ("file", 3, 1),
                ("private", 1, 2),
            }
            assert unexplained(after, page_size) == unexplained(before, page_size)


@smallest_pages
@pytest.mark.usefixtures("root")
def test_a_mount_that_was_detached(kernel: Kernel, area: Path, page_size: int) -> None:
    """Its device is in no table of mounts."""
    with reserved(page_size, PAGES), contextlib.ExitStack() as holders:
        where = area / "detached"
        where.mkdir()
        subprocess.run(["mount", "-t", "hugetlbfs", "-o", f"pagesize={page_size}", "none", where], check=True)
        try:
            before = find_holdings(kernel, os.getpid())
            mapped = holders.enter_context(holding("file", page_size, where / FILE))
            opened = holders.enter_context(holding("file, open and deleted", page_size, where / "other"))
        finally:
            subprocess.run(["umount", "-l", where], check=True)
        after = find_holdings(kernel, os.getpid())
        found = {each.processes[0].pid: (each.page_size, each.used, each.reserved) for each in new(before, after)}
        assert found == {mapped.pid: (page_size, 3, 1), opened.pid: (page_size, 2, 0)}
        assert unexplained(after, page_size) == unexplained(before, page_size)


@smallest_pages
@pytest.mark.usefixtures("root")
def test_a_mount_of_another_namespace(kernel: Kernel, area: Path, page_size: int) -> None:
    script = 'mount -t hugetlbfs -o "pagesize=$1" none "$2" && fallocate -l "$1" "$2/f" && echo && cat'
    with reserved(page_size, PAGES):
        command = ["unshare", "--mount", "sh", "-c", script, "sh", str(page_size), str(area)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"\n"
            report = find_holdings(kernel, os.getpid())
            (found,) = [each for each in report.holdings if each.path == f"/proc/{process.pid}/root{area}/f"]
            assert (found.kind, found.used, found.page_size) == ("file", 1, page_size)
            assert os.stat(found.path).st_blksize == page_size


@smallest_pages
def test_one_file_in_many_processes_is_counted_once(kernel: Kernel, hugetlbfs: Path, page_size: int) -> None:
    """The areas of each process overlap those of others, and the first process reserves nothing."""
    with reserved(page_size, PAGES), contextlib.ExitStack() as holders:
        before = find_holdings(kernel, os.getpid())
        # The last one truncates the file that the previous one has mapped.
        hows = ("file, nothing reserved", "file, nothing touched", "file", "file, nothing touched")
        for number, (how, pages) in enumerate(zip(hows, [(1, 0), (1, 2), (3, 1), (3, 0)], strict=True), start=1):
            holders.enter_context(holding(how, page_size, hugetlbfs / FILE))
            after = find_holdings(kernel, os.getpid())
            (found,) = new(before, after)
            assert ((found.used, found.reserved), len(found.processes)) == (pages, number)
            assert unexplained(after, page_size) == unexplained(before, page_size)
        holders.close()
        (hugetlbfs / FILE).unlink()


@smallest_pages
def test_who_does_not_answer_is_named_and_keeps_nobody_waiting(
    kernel: Kernel, hugetlbfs: Path, page_size: int, mounted: Mount, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that can be asked nothing, and another one with a file of a filesystem whose server is stopped."""
    never = threading.Event()

    def look(proc: int, pid: int, known: Known) -> HugeProcess | None:
        if pid == silent.pid:
            never.wait()
        return look_at(proc, pid, known)

    monkeypatch.setattr(pool_holders, "look_at", look)
    with (
        reserved(page_size, PAGES),
        (mounted.path / "version").open() as stdin,
        subprocess.Popen(["sleep", "60"], stdin=stdin) as silent,
        subprocess.Popen(["sleep", "60"], stdin=stdin) as other,
        holding("memfd", page_size, hugetlbfs) as holder,
    ):
        halt(mounted.pid)
        try:
            report = find_holdings(kernel, os.getpid())
        finally:
            mounted.process.send_signal(signal.SIGCONT)
            never.set()
            silent.kill()
            other.kill()
        assert f"{silent.pid}:sleep" in report.hung
        assert f"{other.pid}:sleep" not in report.hung
        assert [each.kind for each in report.holdings if holder.pid in {of.pid for of in each.processes}] == ["memfd"]


@smallest_pages
@pytest.mark.parametrize("how", EXPECTED)
def test_a_process_that_ends_while_it_is_looked_at(
    kernel: Kernel, hugetlbfs: Path, page_size: int, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def look(proc: int, pid: int, known: Known) -> HugeProcess | None:
        found = look_at(proc, pid, known)
        return None if pid in (holder.pid, holder.number) else found

    with reserved(page_size, PAGES), holding(how, page_size, hugetlbfs / FILE) as holder:
        monkeypatch.setattr(pool_holders, "look_at", look)
        report = find_holdings(kernel, os.getpid())
        assert holder.pid not in {process.pid for each in report.holdings for process in each.processes}
        (hugetlbfs / FILE).unlink(missing_ok=True)


@smallest_pages
def test_no_filesystem_of_huge_pages_is_known(
    kernel: Kernel, hugetlbfs: Path, page_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A filter forbids memfd_create(2), and none is mounted."""
    monkeypatch.setattr(pool_holders, "unmounted_devices", lambda kernel: {})
    monkeypatch.setattr(pool_holders, "find_mounted", lambda *arguments: MountedFiles({}, {}, frozenset(), ()))
    with reserved(page_size, PAGES), holding("sysv, detached", page_size, hugetlbfs / FILE):
        assert "sysv" not in {each.kind for each in find_holdings(kernel, os.getpid()).holdings}, "others hold pages"
