"""Every refusal, on the real mount, through a real shell: the errno, the words, and nothing touched."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.shell import run, shell

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.conftest import MountMaker
    from tests.support.daemon import Mount
    from tests.support.users import User

CONTROL = "tasks/control"

pytestmark = pytest.mark.usefixtures("patient")


@pytest.fixture
def mount(mounted: Mount, disk: Path) -> Iterator[Mount]:
    """A mount that must still work after any input of a test."""
    yield mounted
    target = disk / "afterwards"  # on a disk it is refused, by a worker that still answers
    target.write_bytes(bytes(1 << 20))
    assert mounted.write(CONTROL, f"clear path={target} name=afterwards") == (1, "EOPNOTSUPP")
    assert mounted.write("debug/ktask_nice", "19") == (0, None)
    assert mounted.read("info/last_cmd_status") == "ok\n"


def refused(mount: Mount, text: str, errname: str, *words: str, file: str = CONTROL, user: User | None = None) -> None:
    """Writing ``text`` must fail with ``errname``, say ``words``, leave no task, and be logged."""
    before = mount.read("tasks/control") + run("ls", str(mount.path / "tasks")).out
    assert mount.write(file, text, user=user) == (1, errname), text
    status = mount.read("info/last_cmd_status", user=user)
    assert status.startswith(f"{file}: {errname}: ")
    for word in words:
        assert word in status, text
    assert status.removesuffix("\n") in mount.read("info/error_log", user=user)
    assert mount.read("tasks/control") + run("ls", str(mount.path / "tasks")).out == before, text


def test_specs_that_cannot_be_understood(mount: Mount) -> None:
    for text, words in (
        ("frobnicate path=/x", ["unknown operation 'frobnicate'", "fallocate"]),
        ("fallocate", ["path is missing"]),
        ("fallocate path=/x colour=red", ["no parameter 'colour'", "length"]),
        ("fallocate path=/x length", ["key=value"]),
        ("fallocate path=/x path=/y", ["twice"]),
        ("fallocate path=/x length=12Q", ["'12Q'"]),
        ("fallocate path=/x length=-1", ["negative"]),
        ("fallocate path=/x length=0", ["below the minimum"]),
        ("fallocate path=/x length=9223372036854775808", ["above"]),
        ("fallocate path=/x length=8E", ["above"]),
        ("fallocate path=/x offset=7E length=7E", ["2^63"]),
        (f"fallocate path=/x length={'9' * 5000}", ["large"]),
        ("fallocate path=/x length=1G undo=yes", ["0 nor 1"]),
        ("fallocate path=/x length=1G mode=0999", ["octal"]),
        ("fallocate path=/x length=1G name=a/b", ["task name"]),
        ("fallocate path=/x length=1G name=..", ["task name"]),
        ("fallocate path='/x length=1G", ["quotation"]),
        ("fallocate path= length=1G", ["empty"]),
        ("fallocate path=/proc/self/fd/0 length=1G", ["/proc/PID/fd"]),
        ("fallocate path=/x length=1G nodes=3-1", ["backwards"]),
        ('{"op": "fallocate", "path": "/x", "length": "huge"}', ["'huge'"]),
        ('{"op": "fallocate", "path": ["/x"]}', ["value"]),
        ('{"path": "/x"}', ["op"]),
        ('{"op": }', ["JSON"]),
    ):
        refused(mount, text, "EINVAL", *words)


def test_the_log_has_a_caret_under_the_token(mount: Mount) -> None:
    mount.write(CONTROL, "fallocate path=/x lenght=64G name=vm0")
    lines = mount.read("info/error_log").splitlines()
    token = lines[1].index("lenght=64G")
    assert lines[2] == " " * token + "^" * len("lenght=64G")
    assert mount.write("info/error_log", "") == (0, None)
    assert mount.read("info/error_log") == ""


def test_targets_that_cannot_be_cleared(mount: Mount, disk: Path) -> None:
    (disk / "directory").mkdir()
    os.mkfifo(disk / "fifo")
    os.mknod(disk / "device", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.mknod(disk / "socket", stat.S_IFSOCK | 0o666)
    (disk / "loop").symlink_to(disk / "loop")
    (disk / "plain").write_bytes(b"precious" * 1024)
    for name, errname in (
        ("missing", "ENOENT"),
        ("directory", "EISDIR"),
        ("fifo", "EINVAL"),
        ("device", "EINVAL"),
        ("socket", "EINVAL"),
        ("loop", "ELOOP"),
        ("plain", "EOPNOTSUPP"),
        ("plain/through a file", "ENOTDIR"),
        ("x" * 300, "ENAMETOOLONG"),
    ):
        target = disk / name
        refused(mount, f"clear path='{target}'", errname, str(target)[:60])
    assert (disk / "plain").read_bytes() == b"precious" * 1024


def test_places_where_nothing_is_created(mount: Mount, area: Path, disk: Path) -> None:
    for target, errname in (
        (disk / "new", "EOPNOTSUPP"),
        (Path("/proc/new"), "EOPNOTSUPP"),
        (area / "none/new", "ENOENT"),
    ):
        refused(mount, f"fallocate path={target} length=1M", errname)
        assert not os.path.exists(target)


def test_a_range_that_does_not_fit_the_pages(mount: Mount, tmpfs: Path) -> None:
    for range_ in ("length=1000", "offset=1 length=4096", "offset=4096 length=4097"):
        refused(mount, f"fallocate path={tmpfs}/f {range_}", "EINVAL", "4K")
    assert list(tmpfs.iterdir()) == []


def test_more_than_the_filesystem_has(mount: Mount, tmpfs: Path) -> None:
    refused(mount, f"fallocate path={tmpfs}/f length=1G", "ENOSPC")
    assert list(tmpfs.iterdir()) == []
    existing = tmpfs / "existing"
    existing.write_bytes(b"x" * 4096)
    refused(mount, f"fallocate path={existing} length=1G", "ENOSPC")
    assert existing.read_bytes() == b"x" * 4096


def test_more_than_the_pool_has(mount: Mount, hugetlbfs: Path, page_size: int) -> None:
    refused(mount, f"fallocate path={hugetlbfs}/f length={page_size << 20}", "ENOMEM", "free")
    refused(mount, f"fallocate path={hugetlbfs}/f length={page_size + 4096}", "EINVAL")
    refused(mount, f"fallocate path={hugetlbfs}/f offset=4096 length={page_size}", "EINVAL")
    assert list(hugetlbfs.iterdir()) == []


def test_files_of_somebody_else(mount_maker: MountMaker, tmpfs: Path, two_users: tuple[User, User]) -> None:
    first, second = two_users
    mount = mount_maker("mode=0666")
    private = tmpfs / "private"
    private.write_bytes(b"secret" * 1000)
    private.chmod(0o600)
    os.chown(private, first.uid, first.gid)
    refused(mount, f"clear path={private}", "EACCES", user=second)
    assert private.read_bytes() == b"secret" * 1000
    readable = tmpfs / "readable"
    readable.write_bytes(b"public" * 1000)
    readable.chmod(0o644)
    refused(mount, f"clear path={readable}", "EACCES", user=second)
    assert readable.read_bytes() == b"public" * 1000
    assert mount.write(CONTROL, f"clear path={private} name=own", user=first) == (0, None)
    assert mount.read("tasks/own/wait", user=first).endswith("done\n")
    assert private.read_bytes() == bytes(6000)


def test_binary_garbage(mount: Mount) -> None:
    for data in (bytes(range(1, 256)), b"\xff\xfe", b"a\0b", os.urandom(4096)):
        assert mount.write_once(CONTROL, data) == (1, "EINVAL")
        assert mount.read("info/last_cmd_status").startswith("tasks/control: EINVAL: ")
    assert run("ls", str(mount.path / "tasks")).out == "control\n"


def test_sizes_of_a_write(mount: Mount, tmpfs: Path) -> None:
    (tmpfs / "f").write_bytes(b"x" * 8192)
    spec = f"clear path={tmpfs}/f name=padded"
    assert mount.write_once(CONTROL, spec.ljust(65536)) == (0, None)
    assert mount.read("tasks/padded/wait").endswith("done\n")
    assert mount.write_once(CONTROL, spec.replace("padded", "longer").ljust(65537)) == (1, "E2BIG")
    assert mount.write_once(CONTROL, "x" * 65536) == (1, "EINVAL")
    assert mount.write_once(CONTROL, " \n\t ") == (1, "EINVAL")
    assert not (mount.path / "tasks" / "longer").exists()


def test_a_write_at_an_offset(mount: Mount) -> None:
    script = 'printf " cancel" | dd of="$1" bs=1 count=6 skip=1 seek=3 conv=notrunc status=none'
    assert shell(script, str(mount.path / CONTROL)).errname == "EINVAL"
    assert "offset" in mount.read("info/last_cmd_status")


def test_two_tasks_of_one_name(mount: Mount, tmpfs: Path) -> None:
    (tmpfs / "f").write_bytes(b"x" * 8192)
    assert mount.write(CONTROL, f"clear path={tmpfs}/f name=one") == (0, None)
    refused(mount, f"clear path={tmpfs}/f name=one", "EEXIST", "one")
    refused(mount, f"clear path={tmpfs}/f name=control", "EEXIST")
    assert mount.write_once(CONTROL, f"clear path={tmpfs}/f name=two\nclear path={tmpfs}/f name=two\n") == (1, "EEXIST")
    assert not (mount.path / "tasks" / "two").exists()
    assert mount.read("tasks/one/wait").endswith("done\n")


def test_several_specs_are_all_or_nothing(mount: Mount, tmpfs: Path) -> None:
    (tmpfs / "f").write_bytes(b"x" * 8192)
    good = f"clear path={tmpfs}/f name=good"
    for bad, errname in (("clear path=/nowhere name=bad", "ENOENT"), ("nonsense", "EINVAL")):
        assert mount.write_once(CONTROL, f"{good}\n{bad}\n") == (1, errname)
        assert run("ls", str(mount.path / "tasks")).out == "control\n"
        assert (tmpfs / "f").read_bytes() == b"x" * 8192
    assert mount.write_once(CONTROL, f"{good}\n\n{good.replace('good', 'better')}\n") == (0, None)
    assert mount.read("info/last_task") == "good\nbetter\n"
    assert all(mount.read(f"tasks/{name}/wait").endswith("done\n") for name in ("good", "better"))


def test_verbs_that_do_not_fit_the_state(mount: Mount, tmpfs: Path) -> None:
    (tmpfs / "f").write_bytes(b"x" * 8192)
    mount.write(CONTROL, f"clear path={tmpfs}/f name=t")
    assert mount.read("tasks/t/wait").endswith("done\n")
    for verb in ("pause", "resume", "cancel", "kill", "start"):
        refused(mount, verb, "EBUSY", "done", file="tasks/t/control")
    refused(mount, "frobnicate", "EINVAL", "pause", file="tasks/t/control")
    refused(mount, "4096", "EBUSY", file="tasks/t/offset")


def test_tunables_keep_their_value(mount: Mount) -> None:
    for text, words in (
        ("0", "minimum"),
        ("-1", "negative"),
        ("x", "number"),
        ("2147483648", "maximum"),
        ("1K", "number"),
        ("", "empty"),
    ):
        refused(mount, text, "EINVAL", words, file="debug/ktask_max_threads")
        assert mount.read("debug/ktask_max_threads") == "max\n"


def test_too_many_tasks(mount: Mount) -> None:
    mount.write("debug/ktask_max_tasks", "2")
    for name in ("a", "b"):
        assert mount.shell("mkdir tasks/$1", name).status == 0
    assert mount.shell("mkdir tasks/c").status == 1
    assert "EAGAIN" in mount.read("info/last_cmd_status")
    assert mount.shell("rmdir tasks/a tasks/b").status == 0


@pytest.mark.parametrize("tmpfs", ["huge=never"], indirect=True)
def test_a_thousand_tasks_one_after_another(mount: Mount, tmpfs: Path) -> None:
    (tmpfs / "f").write_bytes(b"x" * 8192)
    mount.write("debug/ktask_keep_finished", "10")
    script = """
        for i in {1..1000}; do
            echo "clear path=$1 name=t$i" > tasks/control && read -r state < <(tail -n 1 tasks/t$i/wait) || exit 1
            [ "$state" = done ] || exit 2
        done
    """
    assert mount.shell(script, str(tmpfs / "f")).status == 0
    assert run("ls", str(mount.path / "tasks")).out.split() == ["control", *sorted(f"t{i}" for i in range(991, 1001))]
