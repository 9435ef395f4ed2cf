from __future__ import annotations

import errno
import os
import subprocess
from typing import TYPE_CHECKING

import pytest

from ktaskfs.errors import Finding, InvalidValue
from ktaskfs.host import page_cache
from tests.operations.trees.ground import SIZE, as_nobody, make, parsed
from tests.support import filesystems

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.runner import Runner

MIB = 1 << 20
HEADER = "resident dirty total path\n"


def surveyed(runner: Runner, **texts: object) -> tuple[dict[str, int], dict[str, list[str]]]:
    """The counts, and the row of each file."""
    return split(runner.result(runner.prepare("survey", **texts)))


def split(result: str) -> tuple[dict[str, int], dict[str, list[str]]]:
    counts, _, rest = result.partition(HEADER)
    rows = rest.partition("reason path\n")[0].splitlines()
    return parsed(counts), {row.split(" ", 3)[3]: row.split(" ", 3)[:3] for row in rows}


@pytest.fixture
def tree(runner: Runner, disk: Path) -> Path:
    """A file that is cold, one that is half warm, one that is dirty, one without a byte."""
    top = disk / "tree"
    cold, half = make(top / "cold"), make(top / "a/half\n")
    (top / "empty").touch()
    runner.run("evict", path=top)
    with half.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
        assert len(os.pread(file.fileno(), SIZE // 2, 0)) == SIZE // 2
    make(top / "dirty")
    assert cold.exists()
    return top


def test_what_is_there_by_file_and_in_all(runner: Runner, tree: Path) -> None:
    counts, rows = surveyed(runner, path=tree)
    assert rows == {
        "cold": ["0", "0", str(SIZE)],
        "a/half\\012": [str(SIZE // 2), "0", str(SIZE)],
        "dirty": [str(SIZE), str(SIZE), str(SIZE)],
        "empty": ["0", "0", "0"],
    }
    sums = {"bytes": 3 * SIZE, "resident": SIZE // 2 + SIZE, "dirty": SIZE}
    assert counts == {"files": 4, **sums, "unknown": 0, "dirty_unknown": 0, "skipped": 0, "mounts": 0, "left_out": 0}
    subprocess.run(["sync", "-f", tree], check=True)
    assert surveyed(runner, path=tree / "dirty")[1] == {".": [str(SIZE), "0", str(SIZE)]}


def test_nothing_is_read(runner: Runner, tree: Path) -> None:
    before = surveyed(runner, path=tree)
    assert surveyed(runner, path=tree) == before


def test_without_cachestat(runner: Runner, tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*arguments: object) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(page_cache, "_cachestat", missing)
    counts, rows = surveyed(runner, path=tree)
    assert rows["dirty"] == [str(SIZE), "-", str(SIZE)]
    assert (counts["resident"], counts["dirty"], counts["dirty_unknown"]) == (SIZE // 2 + SIZE, 0, 3)


def test_the_kernel_tells_it_to_the_owner(runner: Runner, tree: Path, root: None) -> None:
    for file in ("cold", "dirty"):
        (tree / file).chmod(0o644)
    (tree / "empty").chmod(0o600)
    counts, rows = split(as_nobody(lambda: runner.result(runner.prepare("survey", path=tree))))
    assert rows["dirty"] == ["-", "-", str(SIZE)]
    assert (counts["files"], counts["unknown"], counts["skipped_EACCES"]) == (3, 3, 1)


def test_a_large_file_in_chunks(runner: Runner, disk: Path) -> None:
    file = disk / "large"
    file.write_bytes(os.urandom(40 * MIB + 1))
    plan = runner.prepare("survey", path=file, chunk=100)
    assert sum(node.size for node in plan.nodes) == 40 * 256 + 2
    counts, rows = split(runner.result(plan))
    assert rows == {".": [str(40 * MIB + 4096), rows["."][1], str(40 * MIB + 1)]}
    assert counts["files"] == 1


def test_more_files_than_there_is_room_for(runner: Runner, disk: Path) -> None:
    for number in range(5000):
        (disk / f"{number:05}{'x' * 245}").touch()
    result = runner.result(runner.prepare("survey", path=disk))
    counts, rows = split(result)
    assert counts["files"] == 5000
    assert counts["left_out"] == 5000 - len(rows) > 0
    assert 1000 * 1024 < len(result) < 1 << 20


def test_memory_is_for_the_general_one_and_its_directories_are_not(runner: Runner, tmpfs: Path) -> None:
    (tmpfs / "file").write_bytes(bytes(SIZE))
    assert "\noffset length pages node\n" in runner.result(runner.prepare("survey", path=tmpfs / "file"))
    assert surveyed(runner, path=tmpfs)[1] == {"file": [str(SIZE), "0", str(SIZE)]}
    refused = runner.refused("survey", path=tmpfs, offset=4096)
    assert isinstance(refused, InvalidValue)
    assert refused.message == "offset is not for a directory, or a file of a disk"
    assert runner.refused("survey", path=tmpfs / "file", links=1).message == "links is not for a file of memory"


def test_huge_pages_are_skipped(runner: Runner, area: Path, root: None) -> None:
    """cachestat(2) does not know them; a survey of the file itself, or of its mount, does."""
    with filesystems.hugetlbfs(area / "huge", 2 * MIB) as huge:
        (huge / "file").touch()
        os.truncate(huge / "file", 2 * MIB)
        with pytest.raises(Finding) as caught:
            runner.run("survey", path=area, cross_mounts=1)
        assert caught.value.errno == errno.EOPNOTSUPP
