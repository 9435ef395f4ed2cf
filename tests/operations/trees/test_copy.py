from __future__ import annotations

import errno
import itertools
import os
import stat
import subprocess
from typing import TYPE_CHECKING

import pytest

from ktaskfs.errors import Finding, InvalidValue, NotSupported, OutOfHugePages, OutOfSpace
from ktaskfs.span import Node
from tests.operations.trees.ground import as_nobody, make, parsed
from tests.support import filesystems
from tests.support.hugepages import TestPool

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from tests.support.runner import Place, Runner

MIB = 1 << 20


def fill(top: Path) -> Path:
    """Files of all kinds, with different modes and times."""
    for number in range(30):
        make(top / f"d{number % 3}/deep/f{number}").chmod(0o600 + number % 64)
    (top / "empty").touch()
    (top / "nothing/at/all").mkdir(parents=True)
    (top / "large").write_bytes(os.urandom(9 * MIB + 77))
    (top / "bad\udcff\nname").write_text("x")
    (top / "link").symlink_to("d0/deep/f0")
    (top / "away").symlink_to("/no/where\n")
    with (top / "sparse").open("wb") as file:
        file.seek(30 * MIB)
        file.write(b"end")
        file.truncate(40 * MIB)
    for number, path in enumerate(sorted(top.rglob("*"))):
        os.utime(path, ns=(10**18 + number, 10**18 + 7 * number), follow_symlinks=False)
    (top / "d1/deep").chmod(0o500)
    (top / "d2").chmod(0o1777)
    return top


def traits(top: Path, *, links: bool = True) -> dict[str, tuple[object, ...]]:
    """Mode, time and content of everything."""
    found: dict[str, tuple[object, ...]] = {}
    for path in [top, *top.rglob("*")]:
        status = path.lstat()
        content: object = None
        if path.is_symlink():
            content = os.readlink(path)
        elif path.is_file():
            content = path.read_bytes().rstrip(b"\0")
        found[str(path.relative_to(top))] = oct(status.st_mode), status.st_mtime_ns, content
    return found


@pytest.fixture
def source(disk: Path) -> Path:
    return fill(disk / "source")


def copied(runner: Runner, source: Path, path: Path, **texts: object) -> dict[str, int]:
    plan = runner.prepare("copy", source=source, path=path, **texts)
    return parsed(runner.result(plan))


def failed(runner: Runner, remaining: Sequence[Node] | None = None, /, **texts: object) -> Finding:
    with pytest.raises(Finding) as caught:
        runner.run("copy", remaining, **texts)
    return caught.value


def test_everything_is_copied(runner: Runner, source: Path, place: Place, disk: Path) -> None:
    """To hugetlbfs, tmpfs and a disk."""
    links = ("link", "away") if place.unit == 4096 else ()
    if not links:
        refused = runner.refused("copy", source=source, path=place.directory / "copy")
        assert isinstance(refused, NotSupported)
        for name in ("link", "away"):
            (source / name).unlink()
    before = traits(source)
    for path in (place.directory / "copy", disk / "copy"):
        result = copied(runner, source, path)
        assert [result[name] for name in ("files", "directories", "links", "skipped")] == [34, 9, len(links), 0]
        assert traits(path) == before
        assert (path / "sparse").stat().st_blocks * 512 <= max(8 * MIB, 2 * place.unit)
    assert traits(source) == before


def test_out_of_huge_pages_again(runner: Runner, source: Path, place: Place, disk: Path) -> None:
    for name in ("link", "away"):
        (source / name).unlink()
    copied(runner, source, place.directory / "copy")
    copied(runner, place.directory / "copy", disk / "back")
    assert traits(disk / "back") == traits(source)


def test_a_directory_that_is_there(runner: Runner, source: Path, disk: Path) -> None:
    (disk / "empty").mkdir()
    copied(runner, source, disk / "empty")
    assert traits(disk / "empty") == traits(source)
    refused = runner.refused("copy", source=source, path=disk / "empty")
    assert refused.errno == errno.ENOTEMPTY
    for path in (source / "new", source, source / "nothing"):
        assert isinstance(runner.refused("copy", source=source, path=path), InvalidValue)
    refused = runner.refused("copy", source=source / "large", path=disk / "empty")
    assert refused.errno == errno.ENOTDIR
    assert refused.message == f"{source}/large is not a directory, but {disk}/empty is"
    assert runner.refused("copy", source=source, path=make(disk / "file")).errno == errno.ENOTDIR
    assert runner.refused("copy", source=source, path=disk / "none/x").errno == errno.ENOENT


def test_what_never_starts_leaves_no_directory(runner: Runner, source: Path, disk: Path) -> None:
    runner.prepare("copy", source=source, path=disk / "copy").abort()
    told = runner.result(runner.prepare("copy", source=source, path=disk / "copy", plan=1))
    assert f"\ncreates {disk}/copy\n" in told
    assert not (disk / "copy").exists()


def test_the_rest_alone(runner: Runner, source: Path, disk: Path) -> None:
    """The remains of a first run that ended early: the second run repeats a part, and completes the copy."""
    with pytest.MonkeyPatch.context() as patch:
        calls = iter(range(10**6))
        real = os.sendfile

        def sendfile(*arguments: int) -> int:
            if next(calls) == 25:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return real(*arguments)

        patch.setattr(os, "sendfile", sendfile)
        plan = runner.prepare("copy", source=source, path=disk / "copy")
        total = sum(node.size for node in plan.nodes)
        assert runner.failure(plan, max_chunk_size=MIB, threads=1).errno == errno.ENOSPC
    assert runner.run("copy", [Node(0, total, -1)], source=source, path=disk / "copy").units_done == total
    assert traits(disk / "copy") == traits(source)


def test_special_files_are_left_out_and_named(runner: Runner, disk: Path) -> None:
    (disk / "source").mkdir()
    os.mkfifo(disk / "source/fifo")
    make(disk / "source/file")
    plan = runner.prepare("copy", source=disk / "source", path=disk / "copy")
    text = runner.result(plan)
    assert parsed(text)["skipped_special"] == 1
    assert text.endswith("reason path\nspecial fifo\n")
    assert os.listdir(disk / "copy") == ["file"]


def test_links_are_followed_if_told(runner: Runner, disk: Path) -> None:
    blob = make(disk / "blobs/0")
    (disk / "shown/d").mkdir(parents=True)
    (disk / "shown/d/model").symlink_to("../../blobs/0")
    (disk / "shown/e").symlink_to("d")
    (disk / "shown/d/up").symlink_to("../d")
    found = failed(runner, source=disk / "shown", path=disk / "copy", links=1)
    assert found.errno == errno.ELOOP, "the other names of a directory are named, not copied"
    assert not (disk / "copy/d/model").is_symlink() or not (disk / "copy/e/model").is_symlink()
    (disk / "shown/d/up").unlink()
    (disk / "shown/e").unlink()
    copied(runner, disk / "shown", disk / "again", links=1)
    assert (disk / "again/d/model").read_bytes() == blob.read_bytes()
    assert stat.S_ISREG((disk / "again/d/model").lstat().st_mode)


def test_files_that_change_vanish_or_cannot_be_read(runner: Runner, source: Path, disk: Path) -> None:
    plan = runner.prepare("copy", source=source, path=disk / "copy")
    with (source / "d0/deep/f0").open("ab") as file:
        file.write(b"more")
    (source / "d0/deep/f3").unlink()
    (source / "d0/deep/f6").unlink()
    (source / "d0/deep/f6").symlink_to("f9")
    with pytest.raises(Finding) as caught:
        runner.work(plan)
    rows = caught.value.result.partition("reason path\n")[2].splitlines()
    assert sorted(rows) == ["EBUSY d0/deep/f0", "EINVAL d0/deep/f6", "gone d0/deep/f3"]
    assert (disk / "copy/large").read_bytes() == (source / "large").read_bytes()


def test_nothing_is_written_through_what_is_planted(
    runner: Runner, source: Path, disk: Path, root: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody who may write into the copy puts links, a FIFO and second names there while it is made."""
    precious = make(disk / "precious")
    content = precious.read_bytes()
    copy = disk / "copy"
    plan = runner.prepare("copy", source=source, path=copy)
    (copy / "empty").symlink_to(precious)
    os.link(precious, copy / "large")
    os.mkfifo(copy / "sparse")
    (copy / "d0").symlink_to(disk)
    with pytest.raises(Finding) as caught:
        runner.work(plan)
    assert precious.read_bytes() == content
    rows = caught.value.result.partition("reason path\n")[2].splitlines()
    assert {"EEXIST empty", "EEXIST large", "EEXIST sparse"} <= set(rows)
    assert not (disk / "deep").exists()


def test_no_room(runner: Runner, disk: Path, place: Place) -> None:
    top = disk / "source"
    top.mkdir()
    with (top / "large").open("wb") as file:
        if place.unit > 4096:  # a byte in each of more huge pages than the machine has
            for number in range(2 * TestPool(place.unit, 0).available):
                os.pwrite(file.fileno(), b"x", number * place.unit)
        else:
            file.write(bytes(2 * MIB))
            with (place.directory / "other").open("wb") as other:
                os.posix_fallocate(other.fileno(), 0, os.statvfs(place.directory).f_bavail * 4096 - MIB)
    refused = runner.refused("copy", source=top, path=place.directory / "copy")
    assert isinstance(refused, (OutOfSpace, OutOfHugePages))
    assert not (place.directory / "copy").exists()


def test_as_another_user(runner: Runner, source: Path, disk: Path, root: None) -> None:
    """Files that the user may not read are skipped, and named; set-id bits and owners are not copied."""
    (source / "d0").chmod(0o700)
    tool = source / "tool"
    tool.touch()
    tool.chmod(0o4755)
    (disk / "theirs").mkdir()
    os.chown(disk / "theirs", 65534, 65534)

    def body() -> tuple[int, str]:
        found = failed(runner, source=source, path=disk / "theirs/copy")
        return found.errno, found.result

    number, text = as_nobody(body)
    assert number == errno.EACCES
    assert "\nEACCES d0\n" in text
    status = (disk / "theirs/copy/tool").stat()
    assert (status.st_uid, oct(status.st_mode)) == (65534, oct(stat.S_IFREG | 0o755))
    (source / "d2").chmod(0o3777)
    os.chown(source / "d2", 65534, 65534)
    copied(runner, source, disk / "mine")
    assert stat.S_IMODE((disk / "mine/d2").stat().st_mode) == 0o1777, "others may not remove files there either"
    (disk / "closed").mkdir(0o755)
    assert as_nobody(lambda: runner.refused("copy", source=source, path=disk / "closed").errno) == errno.EACCES


def test_other_mounts_are_left_out(runner: Runner, disk: Path, root: None) -> None:
    (disk / "source/below").mkdir(parents=True)
    with filesystems.tmpfs(disk / "source/below/mounted", 16 * MIB) as mounted:
        make(mounted / "file")
        assert copied(runner, disk / "source", disk / "apart")["mounts"] == 1
        assert copied(runner, disk / "source", disk / "across", cross_mounts=1)["files"] == 1
        assert (disk / "across/below/mounted/file").exists()


@pytest.mark.parametrize("links", [0, 1])
def test_a_file_that_is_mounted_on_a_file_is_copied(runner: Runner, disk: Path, links: int, root: None) -> None:
    """As by cp -x, rsync -x and tar --one-file-system."""
    for name in ("source/point", "source/rest", "other"):
        make(disk / name)
    source, path = disk / "source", disk / "copy"
    subprocess.run(["mount", "--bind", disk / "other", disk / "source/point"], check=True)
    try:
        assert copied(runner, source, path, links=links)["mounts"] == 0
        assert (disk / "copy/point").read_bytes() == (disk / "other").read_bytes()
        assert "\ndiffers 0\n" in runner.result(runner.prepare("compare", source=source, path=path, links=links))
        for operation in ("prefetch", "evict"):
            result = parsed(runner.result(runner.prepare(operation, path=source, links=links)))
            assert (result["files"], result["mounts"]) == (2, 0)
    finally:
        subprocess.run(["umount", disk / "source/point"], check=True)


@pytest.mark.parametrize("make", ["mkfs.xfs", "mkfs.btrfs"])
def test_to_and_from_other_disks(runner: Runner, source: Path, disk: Path, make: str) -> None:
    with filesystems.disk_image(disk, make) as other:
        copied(runner, source, other / "copy")
        assert traits(other / "copy") == traits(source)
        copied(runner, other / "copy", disk / "back")
        assert traits(disk / "back") == traits(source)
        assert runner.result(runner.prepare("compare", source=other / "copy", path=disk / "back"))


def test_many_small_files(runner: Runner, disk: Path, tmpfs: Path) -> None:
    script = 'for my $d (0..20) { mkdir "d$d"; for (1..60) { open my $f, ">", "d$d/$_"; print $f $_ x ($_ % 9) } }'
    (disk / "source").mkdir()
    subprocess.run(["perl", "-e", script], cwd=disk / "source", check=True)
    result = copied(runner, disk / "source", tmpfs / "copy")
    assert (result["files"], result["directories"]) == (21 * 60, 21)
    subprocess.run(["diff", "-r", disk / "source", tmpfs / "copy"], check=True)


def test_a_tmpfs_that_is_full_for_a_moment(
    runner: Runner, source: Path, tmpfs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Like the kernel's answer while another thread splits the huge pages of small files, which a test cannot force."""
    calls, real = itertools.count(), os.sendfile

    def sendfile(*arguments: int) -> int:
        if next(calls) % 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(*arguments)

    monkeypatch.setattr(os, "sendfile", sendfile)
    copied(runner, source, tmpfs / "copy")
    assert traits(tmpfs / "copy") == traits(source)


def test_a_tmpfs_that_becomes_full(runner: Runner, source: Path, tmpfs: Path) -> None:
    plan = runner.prepare("copy", source=source, path=tmpfs / "copy")
    with (tmpfs / "other").open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, os.statvfs(tmpfs).f_bavail * 4096)
        assert runner.failure(plan).errno == errno.ENOSPC


@pytest.mark.parametrize("tool", ["sha256sum", "b2sum", "md5sum"])
def test_a_list_of_digests_in_the_same_pass(runner: Runner, source: Path, disk: Path, tmpfs: Path, tool: str) -> None:
    """Only of regular files, including their holes; both the tool and ``checksum`` confirm the list for the copy."""
    (source / "bad\udcff\nname").unlink()
    text = runner.result(runner.prepare("copy", source=source, path=tmpfs / "copy", digest=tool))
    assert traits(tmpfs / "copy") == traits(source)
    (disk / "list").write_text(text)
    check = [tool, "--quiet", "-c", str(disk / "list")]
    done = subprocess.run(check, cwd=tmpfs / "copy", check=False, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    assert sorted(lines) == sorted(runner.result(runner.prepare("checksum", path=source, algorithm=tool)).splitlines())
    assert "# files 33\n" in text
    assert "# links 2\n" in text
    (tmpfs / "copy/large").write_bytes(b"other")
    assert subprocess.run(check, cwd=tmpfs / "copy", check=False, capture_output=True).returncode == 1


def test_a_list_of_digests_in_a_file(runner: Runner, source: Path, disk: Path) -> None:
    out = disk / "list"
    told = runner.result(runner.prepare("copy", source=source, path=disk / "copy", digest="sha256sum", out=out, plan=1))
    assert f"list {out}\n" in told
    assert not out.exists()
    assert copied(runner, source, disk / "copy", digest="sha256sum", out=out)["files"] == 34
    done = subprocess.run(["sha256sum", "--quiet", "-c", str(out)], cwd=disk / "copy", check=False, capture_output=True)
    assert (done.returncode, done.stdout) == (0, b"")
    again = runner.refused("copy", source=source, path=disk / "again", digest="sha256sum", out=out)
    assert again.errno == errno.EEXIST
    assert not (disk / "again").exists()
    assert isinstance(runner.refused("copy", source=source, path=disk / "again", out=disk / "other"), InvalidValue)
    rest = [Node(0, 4096, -1)]
    assert isinstance(
        runner.refused("copy", rest, source=source, path=disk / "again", digest="sha256sum"), NotSupported
    )
