"""Operations on ranges whose chunks are done by hands: the result is that of the kernel's way.

The tests of each operation cover the kernel's way with holes, truncated files and so on.
"""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Final

import pytest

from ktaskfs.errors import Finding, KtaskfsError, TargetError
from ktaskfs.host import userfaultfd
from ktaskfs.host.hands import Hands
from ktaskfs.ktask import TaskError
from ktaskfs.memory import hand_code
from ktaskfs.memory.digest import ALGORITHMS
from tests.support import filesystems, hugepages
from tests.support.memory_files import HUGE, allocated, content, dirty, is_all, make_dirty, punch, same, write_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from ktaskfs.host.buffer import Block
    from tests.support.hands import Answers
    from tests.support.runner import Runner

PAGES = 24
SIZE = PAGES * HUGE


@pytest.fixture(scope="module")
def pages(root: None) -> Iterator[None]:
    with hugepages.reserved(HUGE, 2 * PAGES):
        yield


@pytest.fixture
def huge(pages: None, area: Path) -> Iterator[Path]:
    with filesystems.hugetlbfs(area / "huge", HUGE) as path:
        yield path


def test_clear(runner: Runner, huge: Path, answers: Answers) -> None:
    make_dirty(huge / "f", SIZE)
    start, end = 3 * HUGE - 12345, 21 * HUGE + 777
    runner.run("clear", path=huge / "f", offset=start, length=end - start, chunk=HUGE)
    assert len(answers) > 10
    assert all(answers)
    assert is_all(0xFF, huge / "f", 0, start)
    assert is_all(0, huge / "f", start, end)
    assert is_all(0xFF, huge / "f", end, SIZE)


@pytest.mark.parametrize("pattern", ["00", "a5a5", "c0ffee", ""])
def test_fill_and_verify(runner: Runner, huge: Path, area: Path, answers: Answers, pattern: str) -> None:
    texts = {"offset": HUGE + 4321, "length": SIZE - 2 * HUGE} | ({"pattern": pattern} if pattern else {})
    make_dirty(huge / "f", SIZE)
    make_dirty(huge / "g", SIZE)
    runner.run("fill", path=huge / "f", **texts)
    assert answers
    assert all(answers)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hand_code, "WORTH", 1 << 62)
        runner.run("fill", path=huge / "g", **texts)
    assert same(huge / "f", huge / "g", SIZE)
    result = runner.result(runner.prepare("verify", path=huge / "f", **texts))
    assert result.startswith(f"compared {SIZE - 2 * HUGE}\nholes 0\ndiffering 0\n")
    assert all(answers)
    dirty(huge / "f", 4 * HUGE, 4 * HUGE + 1)
    with pytest.raises(Finding) as caught:
        runner.work(runner.prepare("verify", path=huge / "f", **texts))
    assert caught.value.position == 4 * HUGE
    assert "differing 1\n" in caught.value.result
    assert not all(answers)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_checksum(runner: Runner, huge: Path, answers: Answers, algorithm: str) -> None:
    write_bytes(huge / "f", content(SIZE))
    for offset, length in ((0, SIZE), (3 * HUGE + 111, 12 * HUGE + 5)):
        texts = {"path": huge / "f", "algorithm": algorithm, "offset": offset, "length": length}
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(hand_code, "WORTH", 1 << 62)
            expected = runner.result(runner.prepare("checksum", **texts))
        assert runner.result(runner.prepare("checksum", **texts)) == expected
    assert answers
    assert all(answers)


def test_compare(runner: Runner, huge: Path, answers: Answers) -> None:
    for name in ("f", "g"):
        write_bytes(huge / name, content(SIZE))

    def compared(**texts: object) -> str:
        return runner.result(runner.prepare("compare", path=huge / "f", source=huge / "g", **texts))

    assert compared() == compared(offset=5, source_offset=5, length=SIZE - 9) == "equal\n"
    assert answers
    assert all(answers)
    dirty(huge / "g", 8 * HUGE, 8 * HUGE + 3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hand_code, "WORTH", 1 << 62)
        expected = compared()
    assert compared() == expected != "equal\n"
    assert not all(answers)


def test_holes_stay_holes(runner: Runner, huge: Path, answers: Answers) -> None:
    make_dirty(huge / "f", SIZE)
    for page in (0, 5, 6, PAGES - 1):
        punch(huge / "f", page * HUGE, HUGE)
    runner.run("clear", path=huge / "f", chunk=HUGE)
    assert answers.count(False) == 4
    assert allocated(huge / "f") == (PAGES - 4) * HUGE
    assert is_all(0, huge / "f", 0, SIZE)
    runner.result(runner.prepare("checksum", path=huge / "f"))
    assert runner.result(runner.prepare("verify", path=huge / "f", pattern="00")).startswith(
        f"compared {SIZE - 4 * HUGE}\nholes {4 * HUGE}\n"
    )
    assert runner.result(runner.prepare("compare", path=huge / "f", source=huge / "f")) == "equal\n"
    assert allocated(huge / "f") == (PAGES - 4) * HUGE


@pytest.mark.parametrize("what", ["truncate", "punch", "kill"])
def test_a_hand_that_dies_at_work(
    runner: Runner, huge: Path, answers: Answers, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """Between the check of the pages and the touch: the kernel's way then reports the error, or finds none."""
    make_dirty(huge / "f", SIZE)
    write = hand_code.write_repeated

    def disturbed(address: int, length: int, block: Block, at: int) -> None:  # in the hand
        match what:
            case "truncate":
                os.truncate(huge / "f", HUGE)
            case "punch":
                punch(huge / "f", 4 * HUGE, 4 * HUGE)
            case "kill":
                write(address, length // 2, block, at)
                os.kill(os.getpid(), signal.SIGKILL)
        write(address, length, block, at)

    monkeypatch.setattr("ktaskfs.operations.ranges._overwrite.write_repeated", disturbed)
    plan = runner.prepare("clear", path=huge / "f", chunk=SIZE)
    if what == "truncate":
        error = runner.failure(plan)
        assert isinstance(error, TargetError)
        assert (error.errno, str(error)) == (errno.ENXIO, f"{huge}/f was truncated to {HUGE} bytes during the work")
    else:
        runner.work(plan)
        assert is_all(0, huge / "f", 0, SIZE)
        assert allocated(huge / "f") == SIZE - (4 * HUGE if what == "punch" else 0)
    assert answers == [False]


def ending(runner: Runner, path: Path) -> int:
    """Clear; the errno it ended with, at the write or later."""
    try:
        runner.run("clear", path=path, length=SIZE, chunk=HUGE, force=1)
    except TaskError as failed:
        return failed.error.errno if isinstance(failed.error, TargetError) else -1
    except KtaskfsError as error:
        return error.errno
    return 0


TRUNCATE: Final = """
import mmap, os, sys
path, size = sys.argv[1], int(sys.argv[2])
with open(path, "r+b") as file:
    while True:
        os.truncate(path, size // 2)
        os.truncate(path, size)
        with mmap.mmap(file.fileno(), size) as mapping:
            mapping[:] = b"\xff" * size
"""


def test_truncated_while_they_work(runner: Runner, huge: Path, answers: Answers) -> None:
    """Another process truncates: hands are forked before their process has other threads that want to run."""
    path = huge / "f"
    make_dirty(path, SIZE)
    with subprocess.Popen([sys.executable, "-c", TRUNCATE, str(path), str(SIZE)]) as other:
        try:
            found = {ending(runner, path) for _ in range(30)}
            while not any(answers):  # by chance, each chunk may have met a truncation
                found.add(ending(runner, path))
        finally:
            other.kill()
    assert found <= {0, errno.EINVAL, errno.ENXIO}


def test_without_userfaultfd_they_do_nothing(
    runner: Runner, huge: Path, answers: Answers, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbidden(features: int) -> int:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    make_dirty(huge / "f", SIZE)
    monkeypatch.setattr(userfaultfd, "create", forbidden)
    runner.run("clear", path=huge / "f")
    assert answers
    assert not any(answers)
    assert is_all(0, huge / "f", 0, SIZE)


def test_a_plan_and_a_small_task_have_none(
    runner: Runner, huge: Path, answers: Answers, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []
    create = Hands.__init__

    def counted(hands: Hands, *arguments: object) -> None:
        made.append(1)
        create(hands, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(Hands, "__init__", counted)
    make_dirty(huge / "f", SIZE)
    runner.run("clear", path=huge / "f", plan=1)
    runner.run("clear", path=huge / "f", length=(1 << 21) - 1)
    assert not made
    runner.run("clear", path=huge / "f", length=1 << 21)
    assert made
