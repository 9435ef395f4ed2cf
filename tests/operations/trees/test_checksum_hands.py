"""``checksum`` of large files in the page cache by hands: the result is that of the way through a buffer."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from ktaskfs.errors import Finding
from ktaskfs.memory import hand_code
from tests.operations.trees.ground import as_nobody, cached
from tests.support import filesystems
from tests.support.shell import run

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.support.hands import Answers
    from tests.support.runner import Runner

MIB = 1 << 20
LARGE = 17 * MIB + 77


@pytest.fixture
def tree(disk: Path) -> Path:
    """Six large files, which are in the cache, and a small one."""
    if not os.major(disk.stat().st_dev):
        pytest.skip("needs a filesystem on a block device in /var/tmp")
    for number in range(6):
        (disk / f"f{number}").write_bytes(os.urandom(LARGE))
    (disk / "small").write_bytes(os.urandom(LARGE // 4))
    return disk


def digests(runner: Runner, path: Path, **texts: object) -> str:
    return runner.result(runner.prepare("checksum", path=path, **{"algorithm": "sha256sum", **texts}))


def expected(tree: Path, tool: str = "sha256sum") -> list[str]:
    return sorted(run("bash", "-c", f'cd "$0" && {tool} *', str(tree)).out.splitlines())


@pytest.mark.parametrize("tool", ["sha256sum", "sha512sum", "b2sum", "sha1sum", "md5sum"])
def test_the_lines_are_those_of_the_tool(runner: Runner, tree: Path, answers: Answers, tool: str) -> None:
    assert sorted(digests(runner, tree, algorithm=tool).splitlines()) == expected(tree, tool)
    assert answers == [True] * 6, "the small one needs no hand"


def test_one_file_and_links_out_of_the_tree(runner: Runner, tree: Path, answers: Answers) -> None:
    assert digests(runner, tree / "f3") == run("sha256sum", str(tree / "f3")).out
    (tree / "links").mkdir()
    (tree / "links/inside").symlink_to(tree / "f2")
    (result,) = digests(runner, tree / "links", links=1).splitlines()
    assert result.replace("inside", "f2") in expected(tree)
    assert answers == [True] * 2


def test_a_manifest(runner: Runner, tree: Path, answers: Answers, area: Path) -> None:
    (area / "SUMS").write_text("\n".join(expected(tree)))
    with (tree / "f4").open("r+b") as file:
        file.write(b"changed")
    with pytest.raises(Finding) as caught:
        runner.run("checksum", path=tree, manifest=area / "SUMS")
    assert caught.value.result.endswith("what path\ndiffers f4\n")
    assert all(answers)


def test_a_file_with_a_part_outside_of_the_cache_is_read(runner: Runner, tree: Path, answers: Answers) -> None:
    with (tree / "f1").open("rb+") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 8 * MIB, 0, os.POSIX_FADV_DONTNEED)
    assert cached(tree / "f1") < LARGE
    with (tree / "f2").open("rb+") as file:  # a hole gets no page
        file.truncate(0)
        file.truncate(LARGE)
    assert sorted(digests(runner, tree).splitlines()) == expected(tree)
    assert sorted(answers) == [False] * 2 + [True] * 4


def test_files_of_memory_are_read(runner: Runner, root: None, area: Path, answers: Answers) -> None:
    """A touch of a page that was allocated and never written would make it data."""
    with filesystems.tmpfs(area / "tmpfs", 64 * MIB) as path:
        (path / "f").write_bytes(os.urandom(LARGE))
        assert sorted(digests(runner, path).splitlines()) == expected(path)
    assert answers == [False]


def test_who_may_not_know_what_is_cached_reads(runner: Runner, root: None, tree: Path, answers: Answers) -> None:
    assert as_nobody(lambda: [sorted(digests(runner, tree).splitlines()), answers]) == [expected(tree), [False] * 6]


def truncated(file: Path) -> Callable[[int, int], memoryview]:
    """``memory_at`` in a hand, where somebody truncates ``file`` before the second window is read."""
    windows, memory_at = iter(range(9)), hand_code.memory_at

    def found(address: int, length: int) -> memoryview:
        if next(windows):
            os.truncate(file, 100)
        return memory_at(address, length)

    return found


def test_a_hand_that_dies_at_work(
    runner: Runner, tree: Path, answers: Answers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thread reads the file as it is now, and all others without a hand."""
    monkeypatch.setattr(hand_code, "memory_at", truncated(tree / "f0"))
    assert digests(runner, tree / "f0") == run("sha256sum", str(tree / "f0")).out
    assert (tree / "f0").stat().st_size == 100
    assert answers == [False]


def test_a_file_that_changes_meanwhile_is_read(
    runner: Runner, tree: Path, answers: Answers, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory_at = hand_code.memory_at

    def found(address: int, length: int) -> memoryview:
        with (tree / "f0").open("ab") as file:
            file.write(b"more")
        return memory_at(address, length)

    monkeypatch.setattr(hand_code, "memory_at", found)
    assert digests(runner, tree / "f0") == run("sha256sum", str(tree / "f0")).out
    assert answers == [False]


def test_small_files_and_plans_have_no_hands(
    runner: Runner, tree: Path, answers: Answers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hand_code, "Hands", None)
    digests(runner, tree, plan=1)
    for number in range(6):
        os.truncate(tree / f"f{number}", 7 * MIB)
    assert sorted(digests(runner, tree).splitlines()) == expected(tree)
    assert answers == []
