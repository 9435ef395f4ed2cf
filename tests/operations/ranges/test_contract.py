"""The contract of every operation on a range of a file, in addition to that of all operations."""

from __future__ import annotations

import errno
import fcntl
import os
from typing import TYPE_CHECKING

import pytest

from ktaskfs.errors import NotSupported
from ktaskfs.span import Node
from ktaskfs.units import PAGES
from tests.operations.contract import (
    OPERATIONS,
    SIZE,
    descriptors,
    ending,
    every_range,
    every_range_path,
    fixed_texts,
    frees,
    is_on_memory,
    is_shared,
    make_file,
    memfd,
    paths,
    ranges_of,
    refusal,
    said,
    seen,
    specs,
    state,
    writes,
)
from tests.support.memory_files import HUGE, allocated

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.hugepages import TestPool
    from tests.support.runner import Place, Runner

SEALS = {"write": 0x8, "future_write": 0x10}  # F_SEAL_WRITE and F_SEAL_FUTURE_WRITE of fcntl(2)
both_memfds = pytest.mark.parametrize("flags", [0, os.MFD_HUGETLB], ids=["small", "huge"])


def halves(runner: Runner, name: str, texts: dict[str, str]) -> list[Node]:
    """The work of the example, cut in two."""
    plan = runner.prepare(name, **texts)
    (whole,) = plan.nodes
    plan.abort()
    start, middle = whole.start.__index__(), whole.size // 2
    return [Node(start, middle, whole.nid), Node(start + middle, whole.size - middle, whole.nid)]


@every_range
def test_a_rest_alone_is_done_or_refused_with_the_declared_reason(
    runner: Runner, texts: dict[str, str], ground: Path, name: str
) -> None:
    """The findings of the earlier part are lost: bad memory there would look good."""
    rest = halves(runner, name, texts)[1:]
    before = state(ground, name)
    if reason := OPERATIONS[name].no_resume:
        error = runner.refused(name, rest, **texts)
        assert said(error) == (NotSupported.__name__, "EOPNOTSUPP", f"resume: {reason}; start a new task")
        assert state(ground, name) == before
    else:
        open_ones = descriptors()
        assert runner.run(name, rest, **texts).units_done == sum(node.size for node in rest)
        assert descriptors() == open_ones


@every_range
def test_a_task_of_which_nothing_was_done_is_done_whole(runner: Runner, texts: dict[str, str], name: str) -> None:
    whole = halves(runner, name, texts)
    fresh = runner.result(runner.prepare(name, **texts))
    assert runner.result(runner.prepare(name, whole, **texts)) == fresh


@every_range_path
def test_a_directory_or_a_descriptor_of_the_worker_itself(
    runner: Runner, texts: dict[str, str], ground: Path, name: str, parameter: str
) -> None:
    before = state(ground, name)
    refused = refusal(runner, name, texts | {parameter: str(ground)})
    if is_shared(name):
        # It is for the other meaning, which may want two directories.
        assert refused is None or refused.errno in (errno.ENOTDIR, errno.ENOTEMPTY, errno.EINVAL)
    else:
        assert said(refused) == ("TargetError", "EISDIR", f"open {ground}: Is a directory")
    own = "/proc/self/fd/0 would be the worker's own: write your process's number, as in /proc/PID/fd/N"
    assert said(refusal(runner, name, texts | {parameter: "/proc/self/fd/0"})) == ("InvalidValue", "EINVAL", own)
    assert state(ground, name) == before


@every_range
def test_a_filesystem_that_is_not_of_memory(runner: Runner, texts: dict[str, str], disk: Path, name: str) -> None:
    """An operation that cannot work there refuses with a message, and makes no file."""
    make_file(disk / "path")
    before = state(disk, name)
    for spec in specs(name, texts | {"path": str(disk / "path")}, disk):
        words = f"{spec['path']} is on another filesystem: this works on hugetlbfs or tmpfs only"
        expected = ("NotSupported", "EOPNOTSUPP", words) if is_on_memory(name) and not is_shared(name) else None
        assert said(refusal(runner, name, spec)) == expected
        assert state(disk, name) == before


@every_range
def test_a_range_past_the_end(runner: Runner, texts: dict[str, str], ground: Path, name: str) -> None:
    """Refused, or possible; nothing is changed before. A source must always have all of its range."""
    before = state(ground, name)
    unit = SIZE if OPERATIONS[name].units is PAGES else 4096
    for offset, length in ((0, SIZE + unit), (SIZE, unit), (1 << 62, unit)):
        short = "path"
        if ranges_of(name).past_end:
            short = "source" if "source" in texts and length > SIZE else ""
        end = offset + length
        words = f"the range ends at {end}, past the end of {ground / short} ({SIZE} bytes)"
        error = refusal(runner, name, texts | {"offset": str(offset), "length": str(length)})
        assert said(error) == (("InvalidValue", "EINVAL", words) if short else None)
        assert state(ground, name) == before


@every_range
@pytest.mark.parametrize("beyond", [0, 5])
def test_a_range_that_begins_at_the_end_and_has_no_length(
    runner: Runner, texts: dict[str, str], ground: Path, name: str, beyond: int
) -> None:
    """An empty range is done at once. ``fallocate`` needs a length, unless a source has it."""
    before = state(ground, name)
    offset = SIZE + beyond
    error = refusal(runner, name, texts | {"offset": str(offset)})
    if OPERATIONS[name].creates and "source" not in texts:
        words = f"length is missing: {ground / 'path'} has {SIZE} bytes, but the range begins at {offset}"
        assert said(error) == ("InvalidValue", "EINVAL", words)
    elif beyond == 0 or ("source" in texts and ranges_of(name).past_end):
        assert error is None
    else:
        words = f"the range begins at {offset}, past the end of {ground / 'path'} ({SIZE} bytes)"
        assert said(error) == ("InvalidValue", "EINVAL", words)
    assert state(ground, name) == before


@every_range_path
@pytest.mark.parametrize("holes", [False, True], ids=["data", "holes"])
def test_a_file_that_is_truncated_meanwhile(
    runner: Runner, place: Place, name: str, parameter: str, holes: bool
) -> None:
    """The task fails, and the process lives; unless all that was wanted was that pages go."""
    unit = max(place.unit, HUGE)
    texts = fixed_texts(name)
    for each in paths(name):
        texts[each] = str(place.directory / each)
        (place.directory / each).touch()
        os.truncate(texts[each], 4 * unit)
        if not (holes and each == parameter):
            runner.run("fallocate", path=texts[each])
    before = descriptors()
    plan = runner.prepare(name, **texts)
    os.truncate(texts[parameter], unit)
    error = ending(runner, plan)
    words = f"{texts[parameter]} was truncated to {unit} bytes during the work"
    assert said(error) == (None if frees(name) else ("TargetError", "ENXIO", words))
    assert os.stat(texts[parameter]).st_size == unit
    if frees(name):
        assert allocated(texts[parameter]) == 0
    assert descriptors() == before


@every_range
@both_memfds
def test_a_memfd_through_proc(
    runner: Runner, pool_2m: TestPool, texts: dict[str, str], ground: Path, name: str, flags: int
) -> None:
    """The operation has the same effect as on a file."""
    with memfd(flags) as (_, path):
        before = descriptors()
        runner.run(name, **texts | {"path": path})
        assert descriptors() == before
        runner.run(name, **texts)
        assert seen(path) == seen(ground / "path")


@every_range
@pytest.mark.parametrize("seal", SEALS)
@both_memfds
def test_a_sealed_memfd_is_refused_or_left_alone(
    runner: Runner, pool_2m: TestPool, texts: dict[str, str], name: str, flags: int, seal: str
) -> None:
    """Refused at once, not halfway; operations that only read may continue."""
    with memfd(flags) as (fd, path):
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, SEALS[seal])
        before = descriptors(), seen(path)
        if writes(name):
            words = f"{path} is sealed: {os.strerror(errno.EPERM)}"
            assert said(refusal(runner, name, texts | {"path": path})) == ("TargetError", "EPERM", words)
        else:
            runner.run(name, **texts | {"path": path})
        assert (descriptors(), seen(path)) == before
