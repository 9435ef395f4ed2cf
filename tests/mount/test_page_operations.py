"""survey, fill, verify, reserve, evict, prefetch and migrate as a person uses them: with echo and cat."""

from __future__ import annotations

import mmap
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support import filesystems, hugepages
from tests.support.memory_files import allocated
from tests.support.poll import until
from tests.support.shell import run, shell

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.conftest import MountMaker
    from tests.support.daemon import Mount
    from tests.support.users import User

HUGE = 2 << 20

pytestmark = pytest.mark.usefixtures("patient")


@pytest.fixture
def huge_pages(area: Path) -> Iterator[Path]:
    """A hugetlbfs with 16 pages of 2 MiB to be had."""
    with hugepages.reserved(HUGE, 16), filesystems.hugetlbfs(area / "huge", HUGE) as path:
        yield path


@pytest.fixture
def plain_tmpfs(area: Path) -> Iterator[Path]:
    """A tmpfs without huge pages."""
    with filesystems.tmpfs(area / "tmpfs", 64 << 20) as path:
        yield path


@pytest.fixture(params=["huge_pages", "plain_tmpfs"])
def memory(request: pytest.FixtureRequest) -> Path:
    """Either of them."""
    path: Path = request.getfixturevalue(request.param)
    return path


def do(mount: Mount, spec: str, state: str = "done", user: User | None = None) -> str:
    """Run a task named t to its end, forget it, and give its result."""
    assert mount.write("tasks/control", f"{spec} name=t", user=user) == (0, None), mount.read(
        "info/last_cmd_status", user=user
    )
    assert mount.read("tasks/t/wait", user=user).splitlines()[-1] == state, mount.read("tasks/t/error", user=user)
    result = mount.read("tasks/t/result", user=user)
    assert run("rmdir", str(mount.path / "tasks/t"), user=user).status == 0
    return result


def refused(mount: Mount, spec: str, user: User | None = None) -> str:
    """The errno of a spec that must be refused, and the words for it."""
    status, name = mount.write("tasks/control", spec, user=user)
    assert status != 0
    return f"{name}: {mount.read('info/last_cmd_status', user=user)}"


def fields(text: str) -> dict[str, str]:
    return {line.split(" ", 1)[0]: line.split(" ", 1)[1] for line in text.splitlines() if " " in line}


def test_a_memory_test(mounted: Mount, memory: Path) -> None:
    file = memory / "file"
    do(mounted, f"fallocate path={file} length=32M")
    assert do(mounted, f"fill path={file} pattern=a55a") == f"written {32 << 20}\n"
    assert run("od", "-An", "-tx1", "-N4", str(file)).out.split() == ["a5", "5a", "a5", "5a"]
    assert fields(do(mounted, f"verify path={file} pattern=a55a"))["differing"] == "0"
    with file.open("rb+") as opened, mmap.mmap(opened.fileno(), 0) as mapped:
        mapped[5_000_001] ^= 4
    assert mounted.write("tasks/control", f"verify path={file} pattern=a55a name=bad") == (0, None)
    assert mounted.read("tasks/bad/wait").splitlines()[-1] == "failed"
    assert mounted.read("tasks/bad/error").startswith("EIO at 5000001: ")
    assert mounted.read("tasks/bad/result").splitlines()[-1] == "5000001 1 5aa55aa55aa55aa5 5ea55aa55aa55aa5"
    assert mounted.read("tasks/bad/progress") == f"{32 << 20} / {32 << 20}\n"


def test_a_survey(mounted: Mount, huge_pages: Path) -> None:
    file = huge_pages / "file"
    do(mounted, f"fallocate path={file} offset=4M length=4M")
    result = do(mounted, f"survey path={file}")
    assert result.endswith(f"offset length pages node\n0 {2 * HUGE} 2 hole\n{2 * HUGE} {2 * HUGE} 2 0\n")
    assert fields(result)["present"] == "2"
    assert allocated(file) == 4 << 20
    assert "EOPNOTSUPP: undo=1: " in refused(mounted, f"survey path={file} undo=1")
    assert fields(do(mounted, f"migrate path={file} nodes=0"))["there"] == "0 2"
    assert "nodes is missing" in refused(mounted, f"migrate path={file}")


def test_reserving(mounted: Mount) -> None:
    with hugepages.reserved(HUGE, 0) as pool:
        before = pool.total
        result = do(mounted, f"reserve pages={before + 6} size=2M")
        assert pool.total == before + 6
        assert f"\nall {before} {before + 6} {before + 6} " in result
        spec = f"reserve pages={before + 76} size=2M chunk=1 rate_max=1 undo=1 name=slow"
        assert mounted.write("tasks/control", spec) == (0, None)
        until(lambda: pool.total > before + 6, "the first page")
        mounted.write("tasks/slow/control", "cancel")
        assert mounted.read("tasks/slow/wait").splitlines()[-1] == "cancelled"
        assert pool.total == before + 6
        do(mounted, f"reserve pages={before} size=2M")
        assert pool.total == before
    assert "no huge pages of 3M" in refused(mounted, "reserve pages=1 size=3M")


def test_evicting_in_two_runs(mounted: Mount) -> None:
    with tempfile.TemporaryDirectory(dir="/var/tmp") as name:
        for number in range(60):
            Path(name, f"f{number}").write_bytes(os.urandom(4096))
        slow = "chunk=8K rate_max=1 max_threads=1"
        assert mounted.write("tasks/control", f"evict path={name} {slow} name=e") == (0, None)
        assert mounted.read("tasks/e/progress").endswith(f" / {60 * 8192}\n")
        until(lambda: not mounted.read("tasks/e/progress").startswith("0 "), "the first chunk")
        mounted.write("tasks/e/control", "cancel")
        assert mounted.read("tasks/e/wait").splitlines()[-1] == "cancelled"
        done = int(fields(mounted.read("tasks/e/stat"))["done"]) // 8192
        assert done < 60
        mounted.write("tasks/e/rate_max", "max")
        extra = Path(name, "extra")
        extra.touch()
        assert mounted.write("tasks/e/control", "resume") == (1, "ESTALE")
        extra.unlink()
        assert mounted.write("tasks/e/control", "resume") == (0, None)
        assert mounted.read("tasks/e/wait").splitlines()[-1] == "done"
        assert mounted.read("tasks/e/progress") == f"{60 * 8192} / {60 * 8192}\n"
        assert fields(mounted.read("tasks/e/result"))["files"] == str(60 - done)
        found = run("fincore", "--bytes", "--noheadings", "-o", "RES", *map(str, Path(name).iterdir())).out.split()
        assert found == ["0"] * 60


def test_prefetching_as_two_users(mount_maker: MountMaker, disk: Path, two_users: tuple[User, User]) -> None:
    """Each task reads the files that its user may read, and reports the rest."""
    mount = mount_maker("mode=0666")
    for number, user in enumerate(two_users):
        file = disk / f"f\n{number}"
        file.write_bytes(os.urandom(1 << 20))
        file.chmod(0o400)
        os.chown(file, user.uid, user.gid)
    do(mount, f"evict path={disk}")
    for number, user in enumerate(two_users):
        result = do(mount, f"prefetch path={disk}", user=user)
        assert fields(result)["files"] == fields(result)["skipped_EACCES"] == "1"
        assert result.endswith(f"reason path\nEACCES f\\012{1 - number}\n")
    found = run("fincore", "--bytes", "--noheadings", "-o", "RES", *map(str, disk.iterdir())).out.split()
    assert found == [str(1 << 20)] * 2


def test_the_lists_of_two_users(mount_maker: MountMaker, disk: Path, two_users: tuple[User, User]) -> None:
    """Relative to where the writer is, written as the writer, and checked by the tool and by the other user."""
    mount = mount_maker("mode=0666")
    first, second = two_users
    tree = disk / "tree"
    for name in ("a", "b/c\nd"):
        (tree / name).parent.mkdir(exist_ok=True, parents=True)
        (tree / name).write_bytes(os.urandom(3 << 20))
    os.chown(disk, first.uid, first.gid)
    spec = "checksum path=tree algorithm=sha256sum out=SUMS name=sums"
    assert shell('cd "$1" && echo "$2" > "$3"/tasks/control', str(disk), spec, str(mount.path), user=first).status == 0
    assert mount.read("tasks/sums/wait").splitlines()[-1] == "done"
    assert mount.read("tasks/sums/out") == f"{disk}/SUMS\n"
    assert (disk / "SUMS").stat().st_uid == first.uid
    assert run("sha256sum", "-c", "--strict", str(disk / "SUMS"), cwd=tree).status == 0
    assert "EACCES" in refused(mount, f"checksum path={tree} out={disk}/MORE", user=second)
    assert "\ndiffer 0\nmissing 0\n" in do(mount, f"checksum path={tree} manifest={disk}/SUMS", user=second)
    (tree / "a").write_bytes(b"")
    assert mount.write("tasks/control", f"checksum path={tree} manifest={disk}/SUMS name=bad") == (0, None)
    assert mount.read("tasks/bad/wait").splitlines()[-1] == "failed"
    assert mount.read("tasks/bad/error").startswith("EBADMSG at 0: 1 differ from the manifest")
    assert mount.read("tasks/bad/result").endswith("what path\ndiffers a\n")


def test_a_copy_of_a_directory_in_two_runs(
    mount_maker: MountMaker, disk: Path, plain_tmpfs: Path, two_users: tuple[User, User]
) -> None:
    """Cancelled and resumed; resume is refused if the source has changed; nobody else can read the file."""
    mount = mount_maker("mode=0666")
    first, second = two_users
    source, copy = disk / "source", plain_tmpfs / "copy"
    for number in range(40):
        file = source / f"d{number % 4}" / f"f{number}"
        file.parent.mkdir(exist_ok=True, parents=True)
        file.write_bytes(os.urandom(60 << 10))
    slow = "chunk=512K rate_max=1 max_threads=1"
    spec = f"copy source={source} path={copy} {slow} name=c"
    assert mount.write("tasks/control", spec, user=first) == (0, None)
    until(lambda: len(list(copy.rglob("f*"))) > 2, "the first files")
    mount.write("tasks/c/control", "cancel", user=first)
    assert mount.read("tasks/c/wait").splitlines()[-1] == "cancelled"
    assert copy.stat().st_mode & 0o777 == 0o700
    mount.write("tasks/c/rate_max", "max")
    (source / "extra").touch()
    assert mount.write("tasks/c/control", "resume", user=first) == (1, "ESTALE")
    (source / "extra").unlink()
    assert mount.write("tasks/c/control", "resume", user=first) == (0, None)
    assert mount.read("tasks/c/wait").splitlines()[-1] == "done"
    assert run("diff", "-r", str(source), str(copy)).status == 0
    assert copy.stat().st_uid == first.uid
    assert "EACCES" in refused(mount, f"copy source={source} path={copy}", user=second)
    assert "EINVAL" in refused(mount, f"copy source={source} path={plain_tmpfs}/new offset=4096", user=second)


def test_an_ordinary_user(mount_maker: MountMaker, plain_tmpfs: Path, two_users: tuple[User, User]) -> None:
    user = two_users[0]
    mount = mount_maker("mode=0666")
    file = plain_tmpfs / "file"
    do(mount, f"fallocate path={file} length=8M", user=user)
    assert do(mount, f"fill path={file}", user=user) == f"written {8 << 20}\n"
    assert fields(do(mount, f"verify path={file}", user=user))["compared"] == str(8 << 20)
    assert fields(do(mount, f"survey path={file}", user=user))["present"] == "2048"
    assert fields(do(mount, f"migrate path={file} nodes=0", user=user))["failed"] == "0"
    assert "only root may change a pool" in refused(mount, "reserve pages=1", user=user)
    file.chmod(0o600)
    assert "EACCES" in refused(mount, f"survey path={file}", user=two_users[1])
