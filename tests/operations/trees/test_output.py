"""``out=FILE``: it is there when all of it is written, or not at all."""

from __future__ import annotations

import errno
import io
import os
from typing import TYPE_CHECKING

import pytest

from ktaskfs.errors import Finding, NotSupported
from tests.operations.trees.ground import as_nobody, make
from tests.support import filesystems
from tests.support.shell import run

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.runner import Runner


@pytest.fixture
def texts(disk: Path) -> dict[str, object]:
    """A spec for three files."""
    for name in ("one", "two", "three"):
        make(disk / "tree" / name)
    return {"path": disk / "tree", "out": disk / "out"}


@pytest.fixture(params=["nameless", "named"])
def nameless(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether the filesystem has files without a name (O_TMPFILE)."""
    real = os.open

    def refuse(path: str, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
        return real(path, flags, mode, dir_fd=dir_fd)

    if request.param == "named":
        monkeypatch.setattr(os, "open", refuse)
    return bool(request.param == "nameless")


def test_it_has_the_mode_of_an_ordinary_new_file(
    runner: Runner, disk: Path, texts: dict[str, object], nameless: bool, root: None
) -> None:
    (disk / "theirs").mkdir()
    os.chown(disk / "theirs", 65534, 65534)
    out = disk / "theirs/out"

    def body() -> None:
        os.umask(0o027)
        runner.run("checksum", path=disk / "tree", out=out)

    as_nobody(body)
    assert len(out.read_text().splitlines()) == 3
    status = out.stat()
    assert (status.st_uid, status.st_mode & 0o777, status.st_nlink) == (65534, 0o640, 1)


def test_a_killed_task_leaves_nothing_in_the_way_of_its_restart(
    runner: Runner, disk: Path, texts: dict[str, object], nameless: bool
) -> None:
    killed = runner.prepare("checksum", **texts)
    assert not (disk / "out").exists()
    runner.run("checksum", killed.nodes, **texts)
    assert len((disk / "out").read_text().splitlines()) == 3
    with pytest.raises(Finding) as caught:
        runner.work(killed)
    assert caught.value.errno == errno.EEXIST
    assert len((disk / "out").read_text().splitlines()) == 3


@pytest.mark.parametrize("replaced", [False, True])
def test_half_a_list_is_removed_and_no_file_of_others(
    runner: Runner,
    disk: Path,
    texts: dict[str, object],
    nameless: bool,
    replaced: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real = os.fdopen

    class Full:
        def __init__(self, fd: int) -> None:
            self._file = real(fd, "wb")

        def __enter__(self) -> Full:
            return self

        def __exit__(self, *_: object) -> None:
            self._file.close()

        def writelines(self, lines: object) -> None:
            self._file.write(b"half")
            self._file.flush()
            if replaced:
                (disk / "out").unlink(missing_ok=True)
                (disk / "out").write_text("theirs")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fdopen", lambda fd, *_, **__: Full(fd))
    with pytest.raises(Finding) as caught:
        runner.run("checksum", **texts)
    assert caught.value.errno == errno.ENOSPC
    assert [path.read_text() for path in disk.glob("out")] == (["theirs"] if replaced else [])


class Late(io.FileIO):
    """A file whose last bytes cannot be written at its close, as on NFS."""

    def close(self) -> None:
        if not self.closed:
            super().close()
            raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))


def test_a_list_that_cannot_be_closed_is_removed(
    runner: Runner, disk: Path, texts: dict[str, object], nameless: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fdopen", lambda fd, *_, **__: Late(fd, "wb"))
    with pytest.raises(Finding) as caught:
        runner.run("checksum", **texts)
    assert caught.value.errno == errno.EDQUOT
    assert not (disk / "out").exists()


@pytest.mark.parametrize("operation", ["checksum", "copy"])
def test_what_could_not_be_written_is_in_the_result(
    runner: Runner, disk: Path, texts: dict[str, object], monkeypatch: pytest.MonkeyPatch, operation: str
) -> None:
    """All files were read for it, and no resume reads them again."""
    more = {"source": texts["path"], "path": disk / "copy", "digest": "sha256sum"} if operation == "copy" else {}
    monkeypatch.setattr(os, "fdopen", lambda fd, *_, **__: Late(fd, "wb"))
    with pytest.raises(Finding) as caught:
        runner.run(operation, **texts | more)
    assert f"write {disk}/out: {os.strerror(errno.EDQUOT)}; the result has" in caught.value.message
    monkeypatch.undo()
    (disk / "list").write_text(caught.value.result)
    assert run("sha256sum", "-c", "--strict", str(disk / "list"), cwd=disk / "tree").status == 0
    assert "# files 3\n" in caught.value.result


def test_it_cannot_be_where_nothing_can_be_written(runner: Runner, hugetlbfs: Path, texts: dict[str, object]) -> None:
    refused = runner.refused("checksum", path=texts["path"], out=hugetlbfs / "out")
    assert isinstance(refused, NotSupported)
    assert not (hugetlbfs / "out").exists()


def test_it_cannot_be_where_no_file_is_left(runner: Runner, area: Path, texts: dict[str, object], root: None) -> None:
    """The start says so, not the end, when all files have been read."""
    with filesystems.tmpfs(area / "few", 1 << 20, "nr_inodes=3") as few:
        for number in range(2):
            (few / str(number)).touch()
        assert runner.refused("checksum", path=texts["path"], out=few / "out").errno == errno.ENOSPC
        (few / "0").unlink()
        runner.run("checksum", path=texts["path"], out=few / "out")
        assert len((few / "out").read_text().splitlines()) == 3
