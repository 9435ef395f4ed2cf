"""Special files as targets: empty, leased, swap space, on a disk that will be unmounted."""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import subprocess
import sys
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from tests.attacks.callers import wait_for_worker
from tests.mount.test_main_job import finish, start
from tests.support import filesystems
from tests.support.hugepages import reserved, smallest_pages
from tests.support.poll import until
from tests.support.shell import run

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.daemon import Mount

SIZE: Final = 4 << 20


def result(mount: Mount, spec: str, name: str) -> str:
    """Run a task to its end; its result."""
    start(mount, f"{spec} name={name}")
    finish(mount, name)
    return mount.read(f"tasks/{name}/result")


def refusal(mount: Mount, spec: str, errname: str) -> str:
    """The message about a spec that the write refuses."""
    assert mount.write("tasks/control", spec) == (1, errname), mount.read("info/last_cmd_status")
    return mount.read("info/last_cmd_status")


# Empty files


def test_empty_files(mounted: Mount, memory: Path, disk: Path) -> None:
    empty, made = disk / "empty", [memory / "copy", disk / "copy"]
    empty.touch()
    for path in made:
        result(mounted, f"copy source={empty} path={path}", f"copy-{path.parent.name}")
        assert path.read_bytes() == b""
    assert result(mounted, f"copy source={empty} path={disk}/c digest=crc32", "c") == "crc32 00000000\n"
    assert result(mounted, f"checksum path={empty}", "crc") == f"crc32 {zlib.crc32(b''):08x}\n"
    leaf = hashlib.sha256(b"\0").hexdigest()
    assert result(mounted, f"checksum path={made[0]} algorithm=sha256", "sha") == f"sha256-tree {leaf}\n"
    assert result(mounted, f"checksum path={made[0]} algorithm=sha256 expect={leaf}", "same") == f"sha256-tree {leaf}\n"
    assert result(mounted, f"compare path={made[0]} source={empty}", "compare") == "equal\n"
    assert result(mounted, f"verify path={made[0]}", "verify").startswith("compared 0\nholes 0\ndiffering 0\n")
    assert "\npages 0\n" in result(mounted, f"survey path={made[0]}", "survey")
    assert result(mounted, f"fill path={made[0]}", "fill") == "written 0\n"
    assert result(mounted, f"evict path={empty}", "evict").startswith("files 1\nbytes 0\nstayed 0\n")
    for operation in ("clear", "free"):
        result(mounted, f"{operation} path={made[0]}", operation)
    assert mounted.read("tasks/clear/progress") == "0 / 0\n"
    assert all(path.read_bytes() == b"" for path in made)


@smallest_pages
def test_an_empty_file_of_huge_pages(mounted: Mount, hugetlbfs: Path, disk: Path) -> None:
    """The task takes no page, and there is none."""
    (disk / "empty").touch()
    result(mounted, f"copy source={disk}/empty path={hugetlbfs}/file", "copy")
    assert os.stat(hugetlbfs / "file").st_size == 0
    assert result(mounted, f"checksum path={hugetlbfs}/file", "sum") == "crc32 00000000\n"
    assert result(mounted, f"copy source={hugetlbfs}/file path={disk}/back", "back") == ""


@pytest.mark.usefixtures("patient")
def test_a_size_of_0_is_not_taken_for_the_truth(mounted: Mount, disk: Path) -> None:
    """Files of control groups, and of FUSE filesystems that say as little, are not copied as if they were empty."""
    files = (path for path in Path("/sys/fs/cgroup").rglob("cgroup.procs") if path.read_bytes())
    source = next(files)
    assert source.stat().st_size == 0
    for spec in (f"copy source={source} path={disk}/file", f"checksum path={source}"):
        assert f"{source} has data but reports size 0" in refusal(mounted, spec, "EOPNOTSUPP")
    assert not (disk / "file").exists()


# Leases

_HOLDER: Final = """
import fcntl, os, signal, sys
fd = os.open(sys.argv[1], os.O_RDONLY if sys.argv[2] == "F_RDLCK" else os.O_RDWR)
def give_back(number, frame):
    if sys.argv[3] == "willing":
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
        os.close(fd)
    print("asked", flush=True)
signal.signal(signal.SIGIO, give_back)
fcntl.fcntl(fd, fcntl.F_SETLEASE, getattr(fcntl, sys.argv[2]))
print("held", flush=True)
sys.stdin.readline()
"""


@contextlib.contextmanager
def leased(path: Path, kind: str, manner: str) -> Iterator[subprocess.Popen[str]]:
    """Another process that has a lease on the file, and gives it back when asked, or when it ends."""
    words = [sys.executable, "-c", _HOLDER, str(path), kind, manner]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        try:
            yield process
        finally:
            process.kill()


@pytest.fixture
def file(memory: Path) -> Path:
    path = memory / "file"
    path.write_bytes(b"x" * SIZE)
    return path


@pytest.mark.parametrize(
    ("spec", "kind"),
    [("clear path={0}", "F_RDLCK"), ("checksum path={0}", "F_WRLCK"), ("copy source={0} path={1}", "F_WRLCK")],
    ids=["written", "read", "source"],
)
def test_a_lease_is_broken(mounted: Mount, file: Path, spec: str, kind: str) -> None:
    """A lease that is released at once delays a start; otherwise the start is answered as starting."""
    spec = spec.format(file, file.with_name("other"))
    with leased(file, kind, "willing"):
        result(mounted, spec, "willing")
    with leased(file, kind, "slow") as holder:
        start(mounted, f"{spec} name=slow")
        assert mounted.read("tasks/slow/state") == "starting\n"
        assert holder.stdout is not None
        assert holder.stdout.readline() == "asked\n"
    finish(mounted, "slow")


def test_a_start_that_waits_for_a_lease_can_be_cancelled(mounted: Mount, file: Path) -> None:
    name = f"leased{os.getpid()}"  # as no task of another run
    with leased(file, "F_RDLCK", "slow"):
        start(mounted, f"clear path={file} name={name}")
        assert mounted.write(f"tasks/{name}/control", "cancel") == (0, None)
        until(lambda: mounted.read(f"tasks/{name}/state") == "cancelled\n", "it is cancelled")
        until(lambda: run("pgrep", "-f", f"^ktask/{name}").out == "", "its worker is gone")
    assert file.read_bytes() == b"x" * SIZE


def test_a_lease_that_is_never_given_back(mounted: Mount, file: Path) -> None:
    """The kernel takes it away in the end."""
    limit = Path("/proc/sys/fs/lease-break-time")
    before = limit.read_text()
    limit.write_text("5")
    try:
        with leased(file, "F_WRLCK", "slow") as holder:
            start(mounted, f"checksum path={file} name=sum")
            assert holder.stdout is not None
            assert holder.stdout.readline() == "asked\n"
            finish(mounted, "sum")
    finally:
        limit.write_text(before)


def test_two_workers_on_one_file_do_not_wait_for_each_other(mounted: Mount, file: Path) -> None:
    """Each task checks with a separate lease whether it is alone."""
    specs = "".join(f"clear path={file} name=t{number}\n" for number in range(6))
    assert mounted.write_once("tasks/control", specs) == (0, None), mounted.read("info/last_cmd_status")
    for number in range(6):
        finish(mounted, f"t{number}")


# Disks


@pytest.mark.usefixtures("patient")
def test_an_active_swap_file(mounted: Mount, area: Path) -> None:
    """It can be read, and is refused at the write of a task that would write to it."""
    with filesystems.disk_image(area, *filesystems.EXT4) as disk:
        swap, plain = disk / "swap", area / "plain"
        swap.write_bytes(bytes(SIZE))
        swap.chmod(0o600)
        plain.write_bytes(b"x" * SIZE)
        subprocess.run(["mkswap", str(swap)], check=True, capture_output=True)
        content = swap.read_bytes()
        subprocess.run(["swapon", str(swap)], check=True)
        try:
            for more in ("", " force=1"):
                said = refusal(mounted, f"copy source={plain} path='{swap}'{more}", "ETXTBSY")
                assert f"{swap} is in use as swap space" in said
            result(mounted, f"checksum path='{swap}'", "sum")
        finally:
            subprocess.run(["swapoff", str(swap)], check=True)
        assert swap.read_bytes() == content
        result(mounted, f"copy source={plain} path='{swap}'", "after")
        assert swap.read_bytes() == plain.read_bytes()


def test_a_task_does_not_hold_its_callers_directory(mounted: Mount, area: Path, file: Path) -> None:
    with filesystems.tmpfs(area / "usb", SIZE) as stick:
        spec = f"fill path={file} chunk=64K rate_max=64K max_threads=1 name=slow"
        outcome = run("bash", "-c", 'echo "$0" > "$1/tasks/control"', spec, str(mounted.path), cwd=stick)
        assert outcome.status == 0, outcome.err
        wait_for_worker(mounted, "slow")
    assert mounted.read("tasks/slow/state") == "running\n"
    assert mounted.write("tasks/slow/control", "cancel") == (0, None)
    finish(mounted, "slow", "cancelled")


def test_a_relative_path_is_the_same_file_when_resumed(mounted: Mount, memory: Path, file: Path) -> None:
    spec = "fill path=file chunk=64K rate_max=64K max_threads=1 name=slow"
    outcome = run("bash", "-c", 'echo "$0" > "$1/tasks/control"', spec, str(mounted.path), cwd=memory)
    assert outcome.status == 0, outcome.err
    worker = wait_for_worker(mounted, "slow")
    assert os.readlink(f"/proc/{worker}/cwd") != str(memory)
    os.kill(worker, signal.SIGTERM)
    until(lambda: mounted.read("tasks/slow/state") == "interrupted\n", "it is interrupted")
    assert mounted.write("tasks/slow/rate_max", "1G") == (0, None)
    outcome = run("bash", "-c", 'echo resume > "$0/tasks/slow/control"', str(mounted.path), cwd=Path("/"))
    assert outcome.status == 0, outcome.err
    finish(mounted, "slow")
    assert b"x" * 4096 not in file.read_bytes()


# Huge pages that a mount has set aside for itself


@pytest.mark.usefixtures("patient")
@smallest_pages
@pytest.mark.parametrize("option", ["min_size", "size", "min_size and size"])
def test_pages_that_the_mount_itself_has_reserved(
    mounted: Mount, area: Path, page_size: int, disk: Path, option: str
) -> None:
    (disk / "plain").write_bytes(b"x" * (4 * page_size))
    options = {"min_size": f"min_size={4 * page_size}", "size": f"size={4 * page_size}"}
    options["min_size and size"] = ",".join(options.values())
    with reserved(page_size, 4) as pool:
        spare = pool.available - 4
        with filesystems.hugetlbfs(area / "huge", page_size, f"mode=1777,{options[option]}") as huge:
            held = "" if option == "size" else f"fallocate path={area}/rest/file length={spare * page_size} name=rest"
            with filesystems.hugetlbfs(area / "rest", page_size):
                if held and spare:
                    start(mounted, held)
                    finish(mounted, "rest")
                start(mounted, f"copy source={disk}/plain path={huge}/copy name=copy")
                finish(mounted, "copy")
                result(mounted, f"free path={huge}/copy unlink=1", "free")
                start(mounted, f"fallocate path={huge}/kept length={4 * page_size} keep_size=1 name=kept")
                finish(mounted, "kept")
                assert os.stat(huge / "kept").st_blocks * 512 == 4 * page_size
                limit = "size" in option.split()
                for spec in (
                    f"fallocate path={huge}/more length={page_size} keep_size=1",
                    f"copy source={disk}/plain path={huge}/more length={page_size}",
                    f"fallocate path={huge}/more length={page_size}",
                ):
                    said = refusal(mounted, spec, "ENOSPC" if limit and pool.available else "ENOMEM")
                    assert ("has 0 left (its option size=)" if limit and pool.available else "but the pool has") in said
                assert not (huge / "more").exists()


_MAPPER: Final = """
import mmap, sys
file = open(sys.argv[1], "rb")
kept = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
kept[:]
print(flush=True)
sys.stdin.readline()
"""


@pytest.mark.parametrize("through", ["itself", "an overlay"])
def test_the_cache_that_stays(mounted: Mount, disk: Path, through: str) -> None:
    for name in ("lower", "upper", "work"):
        (disk / name).mkdir()
    for name in ("file", "other"):
        (disk / "lower" / name).write_bytes(os.urandom(SIZE))
    subprocess.run(["sync", "-f", str(disk)], check=True)  # an overlay does not write the files below it
    with contextlib.ExitStack() as stack:
        tree = disk / "lower"
        if through == "an overlay":
            layers = ",".join(f"{name}dir={disk / name}" for name in ("lower", "upper", "work"))
            tree = stack.enter_context(filesystems.filesystem("overlay", disk / "merged", layers))
        words = [sys.executable, "-c", _MAPPER, str(tree / "file")]
        with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"\n"
            found = result(mounted, f"evict path={tree}", "mapped").splitlines()
            process.communicate()
        counts = ["files 2", f"bytes {2 * SIZE}", "stayed 1", f"stayed_bytes {SIZE}", "stayed_unknown 0"]
        assert found[:5] == counts
        assert "\nstayed 0\nstayed_bytes 0\n" in result(mounted, f"evict path={tree}", "after")
