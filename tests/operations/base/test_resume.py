from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ktaskfs.errors import TargetError
from ktaskfs.host import statx
from ktaskfs.ktask import NO_NODE, Node
from ktaskfs.operations.base.registry import find_operations
from ktaskfs.operations.base.resume import NUMBER_MAX, Baseline

if TYPE_CHECKING:
    from pathlib import Path

    from ktaskfs.operations.base.parameters import TaskParameters
    from ktaskfs.operations.ranges.copy import CopyParameters

SIZE = 8192
NODES = (Node(0, 4096, NO_NODE), Node(4096, 4096, NO_NODE))
OPERATIONS = {name: word.meanings[0] for name, word in find_operations().items()}
COPY = OPERATIONS["copy"]
RESERVE = OPERATIONS["reserve"].parameters(pages=1)


@pytest.fixture
def copying(tmp_path: Path) -> CopyParameters:
    for name in ("from", "to"):
        (tmp_path / name).write_bytes(bytes(SIZE))
    parameters: CopyParameters = COPY.parameters(source=str(tmp_path / "from"), path=str(tmp_path / "to"))
    return parameters


def refusal(baseline: Baseline, parameters: TaskParameters) -> int:
    with pytest.raises(TargetError) as caught:
        baseline.require_files(parameters)
    return caught.value.errno


def test_what_is_as_it_was(copying: CopyParameters) -> None:
    baseline = COPY.baseline(copying, NODES)
    assert (sorted(baseline.files), baseline.size, baseline.total) == (["path", "source"], SIZE, SIZE)
    os.truncate(copying.path, 2 * SIZE)
    os.truncate(copying.source, 1)  # the operation decides that
    baseline.require_files(copying)


@pytest.mark.parametrize("name", ["path", "source"])
def test_another_file_or_none(copying: CopyParameters, name: str) -> None:
    baseline = COPY.baseline(copying, NODES)
    path = getattr(copying, name)
    os.rename(path, path + ".old")
    assert refusal(baseline, copying) == errno.ENOENT
    with open(path, "wb") as file:
        file.write(bytes(SIZE))
    assert refusal(baseline, copying) == errno.ESTALE
    os.rename(path + ".old", path)
    baseline.require_files(copying)


def test_a_file_that_was_cut(copying: CopyParameters) -> None:
    baseline = COPY.baseline(copying, NODES)
    os.truncate(copying.path, SIZE - 1)
    assert refusal(baseline, copying) == errno.ENXIO


def test_only_what_the_range_needs_is_held(copying: CopyParameters) -> None:
    early = COPY.baseline(copying, NODES[:1])
    past_the_end = COPY.baseline(copying, (Node(0, 4 * SIZE, NO_NODE),))
    migrate = OPERATIONS["migrate"]
    pages = migrate.baseline(migrate.parameters(path=copying.path, nodes=(0,)), NODES)
    assert (early.size, past_the_end.size, pages.size) == (4096, SIZE, SIZE)
    assert (early.end, past_the_end.end, pages.end) == (4096, 4 * SIZE, SIZE)
    some_pages = migrate.baseline(migrate.parameters(path=copying.path, nodes=(0,), offset=1, length=4096), NODES)
    assert (some_pages.size, some_pages.end) == (4097, 4097)


def test_a_range_to_the_end_ends_where_it_did(copying: CopyParameters) -> None:
    baseline = COPY.baseline(copying, NODES)
    assert COPY.settled(copying, baseline) == copying._replace(length=SIZE)
    assert COPY.settled(copying._replace(offset=4096), baseline) == copying._replace(offset=4096, length=4096)
    whole_pages = COPY.baseline(copying, (Node(0, SIZE + 1, NO_NODE),))
    assert COPY.settled(copying, whole_pages) == copying._replace(length=SIZE), "it ends at the file's byte"
    given = copying._replace(length=1)
    assert COPY.settled(given, baseline) == given
    assert OPERATIONS["reserve"].settled(RESERVE, baseline) is RESERVE


def test_a_new_file_with_the_number_of_an_old_one(copying: CopyParameters, monkeypatch: pytest.MonkeyPatch) -> None:
    """As ext4 gives it out again at once; whether it does is its own affair, so here only the birth differs."""
    baseline = COPY.baseline(copying, NODES)
    born = statx.birth_time(copying.path)
    monkeypatch.setattr(statx, "birth_time", lambda path: born + 1)
    assert refusal(baseline, copying) == errno.ESTALE


def test_no_file_at_all() -> None:
    baseline = OPERATIONS["reserve"].baseline(RESERVE, NODES)
    assert baseline == Baseline({}, 0, 0, SIZE)
    baseline.require_files(RESERVE)
    baseline.require_processes(RESERVE)


def test_another_list_of_files() -> None:
    baseline = Baseline({}, 0, 0, SIZE, tree=5)
    baseline.require_tree(5)
    with pytest.raises(TargetError) as caught:
        baseline.require_tree(6)
    assert caught.value.errno == errno.ESTALE


NUMBERS = st.integers(0, NUMBER_MAX)


FILES = st.dictionaries(st.text(max_size=9), st.tuples(NUMBERS, NUMBERS, NUMBERS), max_size=3)


@given(FILES, st.tuples(NUMBERS, NUMBERS, NUMBERS, NUMBERS))
def test_through_a_message(files: dict[str, tuple[int, int, int]], numbers: tuple[int, int, int, int]) -> None:
    baseline = Baseline(files, *numbers)
    assert Baseline.from_fields(baseline._asdict()) == baseline


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["files", "end", "size", "total", "tree", "x"]), inner)
    ),
)


@given(JSON)
def test_what_nobody_wrote_so(fields: object) -> None:
    with pytest.raises(ValueError, match="."):
        Baseline.from_fields(fields)


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
        Baseline.from_fields({"files": files, "end": 1, "size": 1, "total": 1, "tree": 0})
