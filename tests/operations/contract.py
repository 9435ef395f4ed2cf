"""The base of the contract tests of all operations: an example for each family, and its visible state."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import pytest

from ktaskfs.errors import KtaskfsError
from ktaskfs.host.target import MEMORY
from ktaskfs.ktask import TaskError
from ktaskfs.operations.base.parameters import PATH
from ktaskfs.operations.base.registry import find_operations
from ktaskfs.operations.ranges._range import RangeOperation
from tests.support import filesystems, hugepages
from tests.support.memory_files import HUGE, dirty

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from ktaskfs.operations.base.plan import Plan
    from tests.support.runner import Runner

WORDS: Final = find_operations()
OPERATIONS: Final = {
    f"{name}@{type(each).__module__.split('.')[2]}" if number else name: each
    for name, word in WORDS.items()
    for number, each in enumerate(word.meanings)
}
"""All operations; where several have one name, ``NAME@FAMILY`` for those that are not the general one."""
ALL: Final = list(OPERATIONS)
RANGES: Final = [name for name, operation in OPERATIONS.items() if isinstance(operation, RangeOperation)]
SIZE: Final = 4 * HUGE
DATA: Final = 3 * HUGE
"""Bytes of a file of the example that hold data; the rest of its SIZE is a hole."""


def make_file(path: Path) -> None:
    byte = b"\xff" if path.name == "path" else b"\x5a"
    path.write_bytes(byte * DATA)
    os.truncate(path, SIZE)


def make_tree(path: Path) -> None:
    path.mkdir()
    (path / "file").write_bytes(b"x" * 5000)


@dataclass(frozen=True)
class Example:
    """A spec that every operation of a family can do: what its paths lead to, on memory or a disk.

    ``not_that`` is what the family says of a path that leads to a FIFO or a device, ``closed`` of one that its own mode
    keeps from being read.
    """

    make: Callable[[Path], None] | None
    memory: bool
    not_that: str = ""
    closed: str = ""


EXAMPLES: Final = {
    "ranges": Example(
        make_file,
        memory=True,
        not_that="{} is not a regular file",
        closed="open {}: Permission denied",
    ),
    "trees": Example(
        make_tree,
        memory=False,
        not_that="{} is neither a directory nor a regular file",
        closed="{} cannot be read: Permission denied",
    ),
    "pools": Example(None, memory=False),
    "processes": Example(None, memory=False),
}


def family(name: str) -> str:
    return type(OPERATIONS[name]).__module__.split(".")[2]


def is_shared(name: str) -> bool:
    """Whether other operations have the same name, for paths that this one does not work on."""
    meanings = WORDS[name.partition("@")[0]].meanings
    return sum(any(each.kind is PATH for each in meaning.declared) for meaning in meanings) > 1


def declares(name: str, parameter: str) -> bool:
    return any(each.name == parameter for each in OPERATIONS[name].declared)


def writes(name: str) -> bool:
    """Whether an operation on a range changes the pages of ``path``, or where they are.

    It then can undo that, or the old contents are lost, and it guards files in use.
    """
    return declares(name, "force") or not OPERATIONS[name].no_undo


def is_on_memory(name: str) -> bool:
    """Whether an operation on a range works only on files of memory."""
    return ranges_of(name).kinds == MEMORY


def frees(name: str) -> bool:
    """Whether all that an operation on a range wants is that pages go: it works past the end of a file, and makes none
    longer."""
    return ranges_of(name).past_end and not OPERATIONS[name].creates


def ranges_of(name: str) -> RangeOperation[Any]:
    operation = OPERATIONS[name]
    assert isinstance(operation, RangeOperation)
    return operation


def paths(name: str) -> list[str]:
    """The parameters that are paths."""
    return [each.name for each in OPERATIONS[name].declared if each.kind is PATH]


def fixed_texts(name: str) -> dict[str, str]:
    """The other parameters of an operation's spec beside its paths; ``path`` holds 0xff where it has data."""
    found = {"pattern": "5a" if writes(name) else "ff", "nodes": "0"}
    return {key: text for key, text in found.items() if declares(name, key)}


every = pytest.mark.parametrize("name", ALL)
every_range = pytest.mark.parametrize("name", RANGES)
every_path = pytest.mark.parametrize(("name", "parameter"), [(each, path) for each in ALL for path in paths(each)])
every_range_path = pytest.mark.parametrize(("name", "parameter"), [(n, path) for n in RANGES for path in paths(n)])


@contextlib.contextmanager
def process_with_memory() -> Iterator[int]:
    """The number of a process that has some memory in small pages."""
    program = f"import mmap, sys; m = mmap.mmap(-1, {SIZE}); m[:] = bytes({SIZE}); print(flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"\n"
        try:
            yield process.pid
        finally:
            process.kill()


@pytest.fixture
def ground(area: Path, disk: Path, root: None, name: str) -> Iterator[Path]:
    """Where the targets of the operation are: a tmpfs, or a disk."""
    if EXAMPLES[family(name)].memory:
        with filesystems.tmpfs(area / "memory", 16 * SIZE, "mode=1777,huge=never") as path:
            yield path
    else:
        yield disk


@pytest.fixture
def texts(ground: Path, name: str) -> Iterator[dict[str, str]]:
    """A spec that the operation can do; its targets bear the names of their parameters."""
    with contextlib.ExitStack() as stack:
        example, found = EXAMPLES[family(name)], fixed_texts(name)
        if declares(name, "pid") and not paths(name):
            found["pid"] = str(stack.enter_context(process_with_memory()))
        if declares(name, "pages"):
            page_size = filesystems.page_sizes()[0]
            pool = stack.enter_context(hugepages.reserved(page_size, 4))
            found |= {"pages": str(pool.total), "size": str(page_size)}
        for parameter in paths(name):
            assert example.make is not None
            if parameter == "path" and family(name) == "trees" and OPERATIONS[name].creates:  # it wants an empty one
                (ground / parameter).mkdir()
            else:
                example.make(ground / parameter)
            found[parameter] = str(ground / parameter)
        yield found


def specs(name: str, texts: dict[str, str], directory: Path) -> Iterator[dict[str, str]]:
    """The spec of the example, and the same for a file to be made in ``directory`` if the operation makes files."""
    yield texts
    if declares(name, "mode"):
        yield texts | {"path": str(directory / "new"), "length": str(SIZE)}


def refusal(runner: Runner, name: str, texts: dict[str, str]) -> KtaskfsError | None:
    """Why there is no plan for a spec; None if there is one, which is not begun."""
    try:
        runner.prepare(name, **texts).abort()
    except KtaskfsError as error:
        return error
    return None


def said(error: KtaskfsError | None) -> tuple[str, str, str] | None:
    """All that a user can see of an error, and its class."""
    return None if error is None else (type(error).__name__, error.errname, error.message)


def ending(runner: Runner, plan: Plan) -> KtaskfsError | None:
    """Run a plan; the error of the chunk that fails, or of the end."""
    try:
        runner.work(plan)
    except TaskError as failed:
        if isinstance(failed.error, KtaskfsError):
            return failed.error
        raise
    except KtaskfsError as error:
        return error
    return None


def descriptors() -> list[str]:
    return sorted(os.listdir("/proc/self/fd"), key=int)


def seen(path: Path | str) -> tuple[int, int, bytes]:
    """Size, blocks and content of a file."""
    with open(path, "rb") as file:
        status = os.fstat(file.fileno())
        return status.st_size, status.st_blocks, file.read()


def state(directory: Path, name: str) -> object:
    """All that a start of operation ``name`` could leave behind: descriptors, files, pages of its pool.

    The blocks of a file count on a filesystem of memory, which is mounted there; a disk's may come late.
    """
    found: dict[str, object] = {}
    for path in directory.rglob("*"):
        size, blocks, content = seen(path) if path.is_file() else (0, 0, b"")
        found[str(path)] = path.lstat().st_mode, size, blocks if os.path.ismount(directory) else 0, content
    pool = hugepages.TestPool(filesystems.page_sizes()[0], 0).total if declares(name, "pages") else 0
    return descriptors(), found, pool


@contextlib.contextmanager
def memfd(flags: int) -> Iterator[tuple[int, str]]:
    """A memfd as the file of the example: its descriptor, and its path for other processes."""
    with os.fdopen(os.memfd_create("guest", flags | os.MFD_ALLOW_SEALING), "r+b") as file:
        path = f"/proc/{os.getpid()}/fd/{file.fileno()}"
        os.ftruncate(file.fileno(), SIZE)
        dirty(path, 0, DATA)
        yield file.fileno(), path
