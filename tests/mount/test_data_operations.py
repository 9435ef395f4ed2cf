"""free, copy, checksum and compare through the mount, with echo and cat, checked by other programs."""

from __future__ import annotations

import os
import random
import re
import subprocess
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.attacks.callers import wait_for_worker
from tests.mount.test_main_job import fill, finish, start
from tests.support.hugepages import reserved, smallest_pages
from tests.support.poll import until
from tests.support.shell import run

if TYPE_CHECKING:
    from tests.conftest import MountMaker
    from tests.support.daemon import Mount
    from tests.support.users import User

SIZE = 32 << 20
OWN_MEMORY = 25 << 20

pytestmark = pytest.mark.usefixtures("patient")


@pytest.fixture
def plain(disk: Path) -> Path:
    """A file of an ordinary filesystem that everybody may read."""
    path = disk / "plain"
    path.write_bytes(random.Random(3).randbytes(SIZE))
    path.chmod(0o644)
    return path


def crc(path: Path) -> str:
    return f"crc32 {zlib.crc32(path.read_bytes()):08x}\n"


def result(mount: Mount, spec: str, name: str, state: str = "done", user: User | None = None) -> str:
    """Run a task to its end; its result."""
    start(mount, f"{spec} name={name}", user)
    finish(mount, name, state, user)
    return mount.read(f"tasks/{name}/result", user=user)


def private_memory(pid: int) -> int:
    """The memory that the process shares with no other, without huge pages."""
    try:
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:  # it has ended
        return 0
    return sum(int(found) << 10 for found in re.findall(r"^Private_(?:Clean|Dirty): *(\d+) kB", rollup, re.MULTILINE))


@smallest_pages
def test_the_life_of_a_file_of_huge_pages(mounted: Mount, hugetlbfs: Path, page_size: int, plain: Path) -> None:
    file, back = hugetlbfs / "model", plain.with_name("back")
    with reserved(page_size, SIZE // page_size) as pool:
        free = pool.available
        assert result(mounted, f"copy source={plain} path={file} digest=crc32", "load") == crc(plain)
        assert mounted.read("tasks/load/progress") == f"{SIZE} / {SIZE}\n"
        assert mounted.read("tasks/load/source") == f"{plain}\n"
        assert run("cmp", str(plain), str(file)).status == 0
        assert result(mounted, f"checksum path={file}", "sum") == crc(plain)
        assert result(mounted, f"compare path={file} source={plain}", "same") == "equal\n"
        assert result(mounted, f"copy source={file} path={back}", "save") == ""
        assert run("cmp", str(plain), str(back)).status == 0
        fill(file)
        found = result(mounted, f"compare path={file} source={plain}", "other").splitlines()
        ours = run("bash", "-c", 'cmp -l "$0" "$1" | wc -l', str(file), str(plain)).out.strip()
        assert found == ["first 0", f"differing {ours}"]
        assert result(mounted, f"free path={file} offset={SIZE // 2}", "half") == ""
        assert pool.available == free - SIZE // page_size // 2
        assert result(mounted, f"free path={file} unlink=1", "rest") == ""
        assert (pool.available, file.exists()) == (free, False)


def test_a_digest_that_is_not_the_expected_one(mounted: Mount, plain: Path) -> None:
    good = crc(plain).split()[1]
    assert result(mounted, f"checksum path={plain} expect={good}", "good") == crc(plain)
    for algorithm, digits in (("crc32", 8), ("xxh3", 32), ("sha256", 64), ("blake3", 64)):
        spec = f"checksum path={plain} algorithm={algorithm} expect={'0' * digits}"
        found = result(mounted, spec, algorithm, "failed").split()[1]
        error = mounted.read(f"tasks/{algorithm}/error")
        assert error.startswith("EBADMSG at 0: ")
        assert f"{algorithm} of bytes 0 to {SIZE} of {plain} is {found}, not {'0' * digits}" in error


def test_refusals_are_errors_of_the_write(mounted: Mount, plain: Path, tmpfs: Path) -> None:
    file = tmpfs / "file"
    file.write_bytes(b"x" * 8192)
    for spec, expected in (
        (f"copy path={file}", "EINVAL"),
        (f"copy path={file} source={tmpfs}/none", "ENOENT"),
        (f"copy path={file} source={file} offset=4096", "EINVAL"),
        (f"copy path={tmpfs}/new source={plain} undo=1", "EOPNOTSUPP"),
        (f"copy path={tmpfs}/new source={plain} source_offset=1E", "EINVAL"),
        (f"copy path={file} source={plain} keep_size=1", "EINVAL"),
        (f"checksum path={file} algorithm=md5", "EINVAL"),
        (f"checksum path={file} expect=1", "EINVAL"),
        (f"verify path={tmpfs} pattern=00", "EISDIR"),
        (f"compare path={file} source={plain} length=8193", "EINVAL"),
        (f"free path={plain}", "EOPNOTSUPP"),
        (f"free path={file} offset=1", "EINVAL"),
        (f"free path={file} undo=1", "EOPNOTSUPP"),
        (f"free path={file} length=4096 shrink=1", "EINVAL"),
    ):
        assert mounted.write("tasks/control", spec) == (1, expected), spec
    assert os.listdir(tmpfs) == ["file"]
    assert file.read_bytes() == b"x" * 8192


def test_as_an_ordinary_user(mount_maker: MountMaker, two_users: tuple[User, User], tmpfs: Path, plain: Path) -> None:
    user, other = two_users
    mount = mount_maker("mode=0666")
    file = tmpfs / "file"
    assert result(mount, f"copy source={plain} path={file} digest=crc32 chunk=1M", "load", user=user) == crc(plain)
    assert (file.stat().st_uid, file.stat().st_mode & 0o777) == (user.uid, 0o600)
    for algorithm in ("crc32", "xxh3", "sha256", "blake3"):
        spec = f"checksum path={file} algorithm={algorithm}"
        mine = result(mount, spec, f"mine-{algorithm}", user=user)
        assert mine == result(mount, f"checksum path={plain} algorithm={algorithm}", f"roots-{algorithm}")
        assert mount.write("tasks/control", spec, user=other) == (1, "EACCES")
    assert result(mount, f"compare path={file} source={plain}", "same", user=user) == "equal\n"
    for spec in (f"copy source={file} path={tmpfs}/stolen", f"free path={file}", f"compare path={plain} source={file}"):
        assert mount.write("tasks/control", spec, user=other) == (1, "EACCES")
    result(mount, f"free path={file} unlink=1", "away", user=user)
    assert os.listdir(tmpfs) == []


def test_the_rest_of_a_copy(mounted: Mount, tmpfs: Path, plain: Path) -> None:
    file = tmpfs / "file"
    start(mounted, f"copy source={plain} path={file} rate_max=1 chunk=1M name=t")
    assert mounted.write("tasks/t/control", "cancel") == (0, None)
    finish(mounted, "t", "cancelled")
    assert int(mounted.read("tasks/t/progress").split()[0]) < SIZE
    mounted.write("tasks/t/rate_max", "max")
    assert mounted.write("tasks/t/control", "resume") == (0, None)
    finish(mounted, "t")
    assert run("cmp", str(plain), str(file)).status == 0


def test_the_rest_of_a_digest_is_refused(mounted: Mount, plain: Path) -> None:
    start(mounted, f"checksum path={plain} rate_max=1 chunk=1M name=t")
    until(lambda: not mounted.read("tasks/t/progress").startswith("0 /"), "the first chunk done")
    assert mounted.write("tasks/t/control", "cancel") == (0, None)
    finish(mounted, "t", "cancelled")
    assert mounted.read("tasks/t/result") == ""
    assert mounted.write("tasks/t/control", "resume") == (1, "EOPNOTSUPP")
    assert "start a new task" in mounted.read("info/last_cmd_status")


def test_a_worker_stays_small(mounted: Mount, tmpfs: Path, plain: Path) -> None:
    file = tmpfs / "file"
    for name, spec in (
        ("copy", f"copy source={plain} path={file} digest=crc32"),
        ("checksum", f"checksum path={plain} algorithm=blake3"),
        ("compare", f"compare path={file} source={plain}"),
    ):
        start(mounted, f"{spec} rate_max=1 chunk=1M name={name}")
        pid = wait_for_worker(mounted, name)
        most = private_memory(pid)
        assert mounted.write(f"tasks/{name}/rate_max", "64M") == (0, None)
        while mounted.read(f"tasks/{name}/state") != "done\n":
            most = max(most, private_memory(pid))
        assert 0 < most < OWN_MEMORY, name


def test_two_copies_into_one_file(mounted: Mount, tmpfs: Path, plain: Path) -> None:
    """The same bytes twice over, at once; then the halves."""
    file = tmpfs / "file"
    subprocess.run(["truncate", "-s", str(SIZE), str(file)], check=True)
    for name in ("a", "b"):
        start(mounted, f"copy source={plain} path={file} name={name} chunk=1M")
    for name in ("a", "b"):
        finish(mounted, name)
    assert run("cmp", str(plain), str(file)).status == 0
