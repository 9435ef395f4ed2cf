from __future__ import annotations

import errno
import os
from dataclasses import asdict, replace
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ktaskfs.errors import TargetError
from ktaskfs.host import syscalls
from ktaskfs.ktask import NO_NODE, Node
from ktaskfs.operations.basis import Basis
from ktaskfs.operations.parameters import TaskParameters
from ktaskfs.operations.registry import find_operations

if TYPE_CHECKING:
    from pathlib import Path

    from ktaskfs.operations.copy import CopyParameters

SIZE = 8192
NODES = (Node(0, 4096, NO_NODE), Node(4096, 4096, NO_NODE))


@pytest.fixture
def copying(tmp_path: Path) -> CopyParameters:
    for name in ("from", "to"):
        (tmp_path / name).write_bytes(bytes(SIZE))
    parameters: CopyParameters = find_operations()["copy"].parameters(
        source=str(tmp_path / "from"), path=str(tmp_path / "to")
    )
    return parameters


def refusal(basis: Basis, parameters: TaskParameters) -> int:
    with pytest.raises(TargetError) as caught:
        basis.require(parameters)
    return caught.value.errno


def test_what_is_as_it_was(copying: CopyParameters) -> None:
    basis = Basis.found(copying, "bytes", NODES)
    assert (sorted(basis.files), basis.size, basis.total) == (["path", "source"], SIZE, SIZE)
    os.truncate(copying.path, 2 * SIZE)
    os.truncate(copying.source, 1)  # that is for the operation to say
    basis.require(copying)


@pytest.mark.parametrize("name", ["path", "source"])
def test_another_file_or_none(copying: CopyParameters, name: str) -> None:
    basis = Basis.found(copying, "bytes", NODES)
    path = getattr(copying, name)
    os.rename(path, path + ".old")
    assert refusal(basis, copying) == errno.ENOENT
    with open(path, "wb") as file:
        file.write(bytes(SIZE))
    assert refusal(basis, copying) == errno.ESTALE
    os.rename(path + ".old", path)
    basis.require(copying)


def test_a_file_that_was_cut(copying: CopyParameters) -> None:
    basis = Basis.found(copying, "bytes", NODES)
    os.truncate(copying.path, SIZE - 1)
    assert refusal(basis, copying) == errno.ENXIO


def test_only_what_the_range_needs_is_held(copying: CopyParameters) -> None:
    early = Basis.found(copying, "bytes", NODES[:1])
    past_the_end = Basis.found(copying, "bytes", (Node(0, 4 * SIZE, NO_NODE),))
    pages = Basis.found(copying, "pages", NODES)
    assert (early.size, past_the_end.size, pages.size) == (4096, SIZE, SIZE)
    assert (early.end, past_the_end.end, pages.end) == (4096, 4 * SIZE, SIZE)
    some_pages = Basis.found(replace(copying, offset=1, length=4096), "pages", NODES)
    assert (some_pages.size, some_pages.end) == (4097, 4097)


def test_a_range_to_the_end_ends_where_it_did(copying: CopyParameters) -> None:
    basis = Basis.found(copying, "bytes", NODES)
    assert basis.settled(copying) == replace(copying, length=SIZE)
    assert basis.settled(replace(copying, offset=4096)) == replace(copying, offset=4096, length=4096)
    whole_pages = Basis.found(copying, "bytes", (Node(0, SIZE + 1, NO_NODE),))
    assert whole_pages.settled(copying) == replace(copying, length=SIZE), "it ends at the file's byte all the same"
    given = replace(copying, length=1)
    assert basis.settled(given) is given
    assert basis.settled(TaskParameters()) == TaskParameters()


def test_a_new_file_with_the_number_of_an_old_one(copying: CopyParameters, monkeypatch: pytest.MonkeyPatch) -> None:
    """As ext4 gives it out again at once; whether it does is its own affair, so here only the birth differs."""
    basis = Basis.found(copying, "bytes", NODES)
    born = syscalls.birth_time(copying.path)
    monkeypatch.setattr(syscalls, "birth_time", lambda path: born + 1)
    assert refusal(basis, copying) == errno.ESTALE


def test_no_file_at_all() -> None:
    basis = Basis.found(TaskParameters(), "pages", NODES)
    assert basis == Basis({}, 0, 0, SIZE)
    basis.require(TaskParameters())


NUMBERS = st.integers(0, 1 << 64)


FILES = st.dictionaries(st.text(max_size=9), st.tuples(NUMBERS, NUMBERS, NUMBERS), max_size=3)


@given(FILES, NUMBERS, NUMBERS, NUMBERS)
def test_through_a_message(files: dict[str, tuple[int, int, int]], end: int, size: int, total: int) -> None:
    basis = Basis(files, end, size, total)
    assert Basis.from_fields(asdict(basis)) == basis


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["files", "end", "size", "total", "x"]), inner)
    ),
)


@given(JSON)
def test_what_nobody_wrote_so(fields: object) -> None:
    with pytest.raises(ValueError, match="."):
        Basis.from_fields(fields)


@pytest.mark.parametrize(
    "files",
    [
        {"x" * 1000: [1, 2, 3]},
        {str(number): [1, 2, 3] for number in range(1000)},
        {"path": [1, 2, True]},
        {"path": [1, 2]},
    ],
)
def test_more_than_is_kept(files: dict[str, list[int]]) -> None:
    with pytest.raises(ValueError, match=".+"):
        Basis.from_fields({"files": files, "end": 1, "size": 1, "total": 1})
