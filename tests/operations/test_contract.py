"""What holds of every operation. A new one joins by being there; what it supports is read from its declaration.

A new family adds its example to EXAMPLES.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import pytest

from ktaskfs.errors import InvalidValue, KtaskfsError, NotSupported, OutOfSpace, TargetError
from ktaskfs.ktask import TaskError
from ktaskfs.operations.base.parameters import PATH
from ktaskfs.operations.base.registry import find_operations
from ktaskfs.operations.ranges._range import RangeOperation
from ktaskfs.span import Node
from ktaskfs.units import PAGES
from tests.support import filesystems, hugepages
from tests.support.as_caller import as_nobody
from tests.support.memory_files import HUGE, allocated

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from ktaskfs.operations.base.plan import Plan
    from tests.support.hugepages import TestPool
    from tests.support.runner import Place, Runner

OPERATIONS: Final = find_operations()
SIZE: Final = 4 * HUGE
SEALS: Final = {"write": 0x8, "future_write": 0x10}  # F_SEAL_WRITE and F_SEAL_FUTURE_WRITE of fcntl(2)


def make_file(path: Path) -> None:
    path.write_bytes(bytes(SIZE))


def make_tree(path: Path) -> None:
    path.mkdir()
    (path / "file").write_bytes(b"x" * 5000)


@dataclass(frozen=True)
class Example:
    """A spec that every operation of a family can do: what its paths lead to, on memory or a disk, and other texts.

    Of the texts an operation gets those that it has parameters for.
    """

    make: Callable[[Path], None] | None
    memory: bool
    texts: dict[str, str]


EXAMPLES: Final = {
    "ranges": Example(make_file, memory=True, texts={"pattern": "00", "nodes": "0"}),
    "trees": Example(make_tree, memory=False, texts={}),
    "pools": Example(None, memory=False, texts={}),
}


def family(name: str) -> str:
    return type(OPERATIONS[name]).__module__.split(".")[2]


def declares(name: str, parameter: str) -> bool:
    return any(each.name == parameter for each in OPERATIONS[name].declared)


def paths(name: str) -> list[str]:
    """The parameters that are paths."""
    return [each.name for each in OPERATIONS[name].declared if each.kind is PATH]


ALL: Final = list(OPERATIONS)
RANGES: Final = [name for name, operation in OPERATIONS.items() if isinstance(operation, RangeOperation)]
every = pytest.mark.parametrize("name", ALL)
every_range = pytest.mark.parametrize("name", RANGES)
every_path = pytest.mark.parametrize(("name", "parameter"), [(each, path) for each in ALL for path in paths(each)])
every_range_path = pytest.mark.parametrize(("name", "parameter"), [(n, path) for n in RANGES for path in paths(n)])


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
        example = EXAMPLES[family(name)]
        found = {key: text for key, text in example.texts.items() if declares(name, key)}
        if declares(name, "pages"):
            page_size = filesystems.page_sizes()[0]
            pool = stack.enter_context(hugepages.reserved(page_size, 4))
            found |= {"pages": str(pool.total), "size": str(page_size)}
        for parameter in paths(name):
            assert example.make is not None
            example.make(ground / parameter)
            found[parameter] = str(ground / parameter)
        yield found


def refusal(runner: Runner, name: str, texts: dict[str, str]) -> KtaskfsError | None:
    """Why there is no plan for a spec; None if there is one, which is not begun."""
    try:
        runner.prepare(name, **texts).abort()
    except KtaskfsError as error:
        return error
    return None


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


def inside(directory: Path) -> dict[str, tuple[int, bytes]]:
    """Size and content of every file."""
    files = [path for path in directory.rglob("*") if path.is_file()]
    return {str(path): (path.stat().st_size, path.read_bytes()) for path in files}


def test_every_family_has_an_example() -> None:
    assert {family(name) for name in ALL} == set(EXAMPLES)


@every
def test_the_example_runs_and_leaves_no_descriptor(runner: Runner, texts: dict[str, str], name: str) -> None:
    before = descriptors()
    runner.run(name, **texts)
    assert descriptors() == before


@every
def test_what_never_starts_changes_nothing(runner: Runner, texts: dict[str, str], ground: Path, name: str) -> None:
    before = descriptors(), inside(ground)
    runner.prepare(name, **texts).abort()
    assert (descriptors(), inside(ground)) == before


@every
def test_undo_is_refused_with_the_declared_reason(
    runner: Runner, texts: dict[str, str], ground: Path, name: str
) -> None:
    before = descriptors(), inside(ground)
    if reason := OPERATIONS[name].no_undo:
        error = runner.refused(name, **texts, undo=1)
        assert (type(error), error.message) == (NotSupported, f"undo=1: {reason}")
    else:
        runner.prepare(name, **texts, undo=1).abort()
    assert (descriptors(), inside(ground)) == before


def halves(runner: Runner, name: str, texts: dict[str, str]) -> list[Node]:
    """The work of the example, cut in two."""
    plan = runner.prepare(name, **texts)
    (whole,) = plan.nodes
    plan.abort()
    start, middle = whole.start.__index__(), whole.size // 2
    return [Node(start, middle, whole.nid), Node(start + middle, whole.size - middle, whole.nid)]


@every_range
def test_a_rest_alone_is_done_or_refused_with_the_declared_reason(
    runner: Runner, texts: dict[str, str], name: str
) -> None:
    """What was found in the other part is not known any more: bad memory there would look good."""
    rest = halves(runner, name, texts)[1:]
    if reason := OPERATIONS[name].no_resume:
        error = runner.refused(name, rest, **texts)
        assert (type(error), error.message) == (NotSupported, f"resume: {reason}; start the task anew")
    else:
        before = descriptors()
        assert runner.run(name, rest, **texts).units_done == sum(node.size for node in rest)
        assert descriptors() == before


@every_range
def test_a_task_of_which_nothing_was_done_is_done_whole(runner: Runner, texts: dict[str, str], name: str) -> None:
    whole = halves(runner, name, texts)
    fresh = runner.result(runner.prepare(name, **texts))
    assert runner.result(runner.prepare(name, whole, **texts)) == fresh


@every
def test_a_node_that_is_not_there(runner: Runner, texts: dict[str, str], ground: Path, name: str) -> None:
    before = inside(ground)
    error = runner.refused(name, **texts | {"nodes": "0,1000"})
    assert (type(error), "node 1000" in error.message) == (InvalidValue, True)
    assert inside(ground) == before


@every_path
def test_a_target_that_is_missing(
    runner: Runner, texts: dict[str, str], ground: Path, name: str, parameter: str
) -> None:
    before = sorted(os.listdir(ground))
    assert runner.refused(name, **texts | {parameter: str(ground / "no" / "file")}).errno == errno.ENOENT
    if parameter != "path" or not declares(name, "mode"):  # with a mode, path is made if it is missing
        assert runner.refused(name, **texts | {parameter: str(ground / "missing")}).errno == errno.ENOENT
    assert sorted(os.listdir(ground)) == before


@every_path
def test_a_target_that_the_caller_may_not_open(
    runner: Runner, texts: dict[str, str], ground: Path, name: str, parameter: str
) -> None:
    for each in ground.rglob("*"):
        each.chmod(0o777)
    closed = ground / "closed"
    closed.mkdir(0o700)
    (ground / parameter).rename(closed / parameter)
    inner = {each: f"/{each}" for each in paths(name)} | {parameter: f"/closed/{parameter}"}

    def attempt() -> int:
        with pytest.raises(KtaskfsError) as caught:
            runner.prepare(name, **texts | inner)
        return caught.value.errno

    assert as_nobody(ground, attempt) == errno.EACCES


@every_path
def test_a_target_that_is_no_file(
    runner: Runner, texts: dict[str, str], ground: Path, name: str, parameter: str
) -> None:
    os.mkfifo(ground / "fifo")
    for path in (ground / "fifo", "/dev/null"):
        assert runner.refused(name, **texts | {parameter: str(path)}).errno == errno.EINVAL


@every_range_path
def test_a_directory_or_a_descriptor_of_the_worker_itself(
    runner: Runner, texts: dict[str, str], ground: Path, name: str, parameter: str
) -> None:
    assert runner.refused(name, **texts | {parameter: str(ground)}).errno == errno.EISDIR
    error = runner.refused(name, **texts | {parameter: "/proc/self/fd/0"})
    assert (type(error), "the worker's own" in error.message) == (InvalidValue, True)


@every_range
def test_a_filesystem_that_is_not_of_memory(runner: Runner, texts: dict[str, str], disk: Path, name: str) -> None:
    """What cannot work there says so, and makes no file."""
    make_file(disk / "file")
    before = descriptors(), inside(disk)
    if (error := refusal(runner, name, texts | {"path": str(disk / "file")})) is not None:
        assert (type(error), "works on" in error.message) == (NotSupported, True)
        if declares(name, "mode"):
            assert type(runner.refused(name, **texts | {"path": str(disk / "new"), "length": "4K"})) is NotSupported
    assert (descriptors(), inside(disk)) == before


@every_range
def test_a_range_past_the_end(runner: Runner, texts: dict[str, str], ground: Path, name: str) -> None:
    """Refused, or possible, as for pages that a file has past its end; in any case nothing is changed ahead of it."""
    before = descriptors(), inside(ground)
    unit = SIZE if OPERATIONS[name].units is PAGES else 4096
    for offset, length in ((0, SIZE + unit), (SIZE, unit), (1 << 62, unit)):
        error = refusal(runner, name, texts | {"offset": str(offset), "length": str(length)})
        if OPERATIONS[name].no_resume:  # it tells what is in the file
            assert error is not None
        if error is not None and not isinstance(error, OutOfSpace):
            assert (type(error), "past the end" in error.message) == (InvalidValue, True)
    assert (descriptors(), inside(ground)) == before


@every_range
def test_a_target_that_is_truncated_meanwhile(runner: Runner, place: Place, name: str) -> None:
    """It fails, and the process lives; unless all that was wanted was that pages go."""
    texts = {key: text for key, text in EXAMPLES["ranges"].texts.items() if declares(name, key)}
    unit = max(place.unit, HUGE)
    for parameter in paths(name):
        (place.directory / parameter).touch()
        os.truncate(place.directory / parameter, 4 * unit)
        runner.run("fallocate", path=place.directory / parameter)
        texts[parameter] = str(place.directory / parameter)
    path = place.directory / "path"
    before = descriptors()
    plan = runner.prepare(name, **texts)
    os.truncate(path, unit)
    error = ending(runner, plan)
    if error is None:
        assert allocated(path) == 0
    else:
        assert (type(error), error.errno) == (TargetError, errno.ENXIO)
        assert str(path) in error.message
    assert path.stat().st_size == unit
    assert descriptors() == before


@contextlib.contextmanager
def memfd(flags: int) -> Iterator[tuple[int, str]]:
    """A memfd of zeros, all there: its descriptor, and its path for other processes."""
    with os.fdopen(os.memfd_create("guest", flags | os.MFD_ALLOW_SEALING), "r+b") as file:
        os.posix_fallocate(file.fileno(), 0, SIZE)
        yield file.fileno(), f"/proc/{os.getpid()}/fd/{file.fileno()}"


@every_range
@pytest.mark.parametrize("flags", [0, os.MFD_HUGETLB], ids=["small", "huge"])
def test_a_memfd_through_proc(runner: Runner, pool_2m: TestPool, texts: dict[str, str], name: str, flags: int) -> None:
    with memfd(flags) as (_, path):
        before = descriptors()
        runner.run(name, **texts | {"path": path})
        assert descriptors() == before


@every_range
@pytest.mark.parametrize("seal", SEALS)
@pytest.mark.parametrize("flags", [0, os.MFD_HUGETLB], ids=["small", "huge"])
def test_a_sealed_memfd_is_refused_or_left_alone(
    runner: Runner, pool_2m: TestPool, texts: dict[str, str], name: str, flags: int, seal: str
) -> None:
    """Refused at once, not halfway; and what only looks at it may go on."""
    with memfd(flags) as (fd, path):
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, SEALS[seal])
        before = descriptors()
        error = refusal(runner, name, texts | {"path": path})
        if error is not None:
            assert (error.errno, "sealed" in error.message) == (errno.EPERM, True)
        else:
            assert ending(runner, runner.prepare(name, **texts | {"path": path})) is None
        assert descriptors() == before
        assert (os.fstat(fd).st_size, allocated(path)) == (SIZE, SIZE)
