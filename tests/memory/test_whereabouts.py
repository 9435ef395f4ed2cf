"""Where pages are, on a machine with two nodes of CPUs, and a third without: the kernel's answers are made up."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest

from ktaskfs.host import numa_pages
from ktaskfs.host.mapping import Mapping
from ktaskfs.host.target import MEMORY, FilesystemType, open_target
from ktaskfs.memory import whereabouts
from ktaskfs.memory.digest import LEAF
from ktaskfs.span import NO_NODE, Node, Span

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from tests.support.runner import Runner

PAGE = 4096
PAGES = 1024
SIZE = PAGES * PAGE


class Memory:
    """``node_of`` says where each page of a file is; ``looks`` counts the mappings that were made to ask."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.node_of: Callable[[int], int] = lambda page: 0
        self.looks = 0
        self._base = 0
        monkeypatch.setattr(whereabouts, "LEAST", SIZE // 4)
        monkeypatch.setattr(whereabouts, "PART", SIZE // 64)
        monkeypatch.setattr(whereabouts, "nodes_with_cpus", lambda kernel: frozenset({0, 1}))
        monkeypatch.setattr(whereabouts, "Mapping", self._map)
        monkeypatch.setattr(numa_pages, "page_nodes", self._nodes)

    def _map(self, fd: int, offset: int, length: int, **how: Any) -> Mapping:
        mapping = Mapping(fd, offset, length, **how)
        self.looks += 1
        self._base = mapping.address - offset
        return mapping

    def _nodes(self, addresses: Sequence[int]) -> list[int]:
        return [self.node_of((address - self._base) // PAGE) for address in addresses]


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> Memory:
    return Memory(monkeypatch)


@pytest.fixture
def file(tmpfs: Path) -> Path:
    path = tmpfs / "file"
    path.write_bytes(b"\1" * SIZE)
    return path


def found(runner: Runner, path: Path, start: int = 0, end: int = SIZE, unit: int = PAGE) -> list[Node]:
    with contextlib.closing(open_target(runner.kernel, str(path), kinds=MEMORY, write=False)) as target:
        return list(whereabouts.nodes_of_pages(runner.kernel, target, Span(start, end), unit))


def test_a_file_on_one_node(runner: Runner, memory: Memory, file: Path) -> None:
    memory.node_of = lambda page: 1
    assert found(runner, file) == [Node(0, SIZE, 1)]
    assert found(runner, file, SIZE // 2 + 5, SIZE - 7) == [Node(SIZE // 2 + 5, SIZE // 2 - 12, 1)]


def test_a_share_on_each_node(runner: Runner, memory: Memory, file: Path) -> None:
    memory.node_of = lambda page: int(page >= PAGES // 4)
    assert found(runner, file) == [Node(0, SIZE // 4, 0), Node(SIZE // 4, SIZE * 3 // 4, 1)]


def test_a_few_pages_elsewhere_do_not_count(runner: Runner, memory: Memory, file: Path) -> None:
    memory.node_of = lambda page: int(page % 10 != 0)
    assert found(runner, file) == [Node(0, SIZE, 1)]


@pytest.mark.parametrize("nodes", [2, 3])
@pytest.mark.parametrize("run", [1, 4, 16, 32])
def test_pages_that_are_spread_over_the_nodes(
    runner: Runner, memory: Memory, file: Path, nodes: int, run: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many pages are together, also as many as in one of the windows."""
    monkeypatch.setattr(whereabouts, "nodes_with_cpus", lambda kernel: frozenset(range(nodes)))
    memory.node_of = lambda page: page // run % nodes
    assert found(runner, file) == []


@pytest.mark.parametrize("unit", [PAGE, LEAF, 3 * PAGE])
def test_the_parts_are_whole_units_and_cover_the_range(runner: Runner, memory: Memory, file: Path, unit: int) -> None:
    start, end = 777, SIZE - 555
    memory.node_of = lambda page: page // 300 % 2
    nodes = found(runner, file, start, end, unit)
    assert [node.nid for node in nodes] == [0, 1, 0, 1]
    assert (nodes[0].start, nodes[-1].end) == (start, end)
    assert all(left.end == right.start and (right.start - start) % unit == 0 for left, right in pairwise(nodes))
    for number, node in enumerate(nodes):
        assert abs(node.start - number * 300 * PAGE) <= max(unit, 16 * PAGE) + PAGE


def test_holes_belong_to_the_part_before(runner: Runner, memory: Memory, file: Path) -> None:
    """With huge pages the file has one of 2 MiB in the middle, without them half of it at the same place."""
    with file.open("r+b") as opened:
        os.truncate(opened.fileno(), 0)
        os.truncate(opened.fileno(), SIZE)
        assert found(runner, file) == [], "no page at all"
        os.pwrite(opened.fileno(), b"\1" * (SIZE // 4), SIZE // 2)
    before = os.stat(file).st_blocks
    memory.node_of = lambda page: int(page >= PAGES * 5 // 8)
    half = SIZE * 5 // 8
    assert found(runner, file) == [Node(0, half, 0), Node(half, SIZE - half, 1)]
    assert os.stat(file).st_blocks == before < SIZE // 512, "the look fills no hole"


def test_where_nothing_is_gained(runner: Runner, memory: Memory, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert found(runner, file, 0, SIZE // 4 - 1) == [], "too short"
    with contextlib.closing(open_target(runner.kernel, str(file), kinds=MEMORY, write=False)) as target:
        disk = dataclasses.replace(target, filesystem=FilesystemType.OTHER)
        assert whereabouts.nodes_of_pages(runner.kernel, disk, Span(0, SIZE), PAGE) == ()
    monkeypatch.setattr(whereabouts, "nodes_with_cpus", lambda kernel: frozenset({0}))
    assert found(runner, file) == [], "one node"
    assert memory.looks == 0, "nobody looked"


def test_a_node_without_cpus(runner: Runner, memory: Memory, file: Path) -> None:
    memory.node_of = lambda page: 2
    assert found(runner, file) == []


def test_a_machine_that_cannot_tell(
    runner: Runner, memory: Memory, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse() -> None:
        raise PermissionError

    monkeypatch.setattr(whereabouts, "HoleGuard", refuse)
    assert found(runner, file) == []


@pytest.mark.parametrize("name", ["clear", "fill", "verify", "checksum", "compare", "copy"])
def test_operations_begin_beside_the_pages(
    runner: Runner, memory: Memory, file: Path, tmp_path: Path, name: str
) -> None:
    memory.node_of = lambda page: int(page >= PAGES // 2)
    texts: dict[str, object] = {"path": file}
    if name in ("fill", "verify"):
        texts["pattern"] = "01"
    if name in ("compare", "copy"):
        texts = {"path": tmp_path / "other", "source": file, "source_offset": PAGE}
    if name == "compare":
        (tmp_path / "other").write_bytes(b"\1" * (SIZE - PAGE))
    before = os.listdir("/proc/self/fd")
    plan = runner.prepare(name, **texts)
    nids = [node.nid for node in plan.nodes]
    outcome = runner.work(plan)
    assert nids == [0, 1]
    assert outcome.units_done == sum(node.size for node in plan.nodes) == SIZE - (PAGE if "source" in texts else 0)
    assert abs(plan.nodes[1].start - SIZE // 2) <= LEAF
    assert os.listdir("/proc/self/fd") == before
    assert [node.nid for node in _planned(runner, name, texts, nodes="0")] == [0]
    left = [Node(0, LEAF, 0)]
    if name in ("clear", "fill", "copy"):
        assert list(_planned(runner, name, texts, left)) == left, "the rest of an earlier run keeps its nodes"


@pytest.mark.parametrize(
    ("policy", "allowed", "nid"),
    [
        ([{1}, {1}], {0, 1}, 1),
        ([{0}, {1}], {0, 1}, NO_NODE),
        ([{0, 1}, {0, 1}], {0, 1}, NO_NODE),
        ([set(), set()], {0, 1}, NO_NODE),
        ([set(), set()], {1}, 1),
        ([{2}, {2}], {0, 1, 2}, NO_NODE),
        ([{0}, {0}], {1}, 1),
    ],
)
def test_new_pages_where_the_policy_has_them(
    runner: Runner,
    memory: Memory,
    tmpfs: Path,
    monkeypatch: pytest.MonkeyPatch,
    policy: list[set[int]],
    allowed: set[int],
    nid: int,
) -> None:
    """Of both ends of the range; node 2 has no CPUs, and the kernel drops nodes that the process may not use."""
    left = list(policy)
    monkeypatch.setattr(numa_pages, "nodes_of_policy", lambda address: frozenset(left.pop(0)))
    monkeypatch.setattr(numa_pages, "allowed_nodes", lambda: frozenset(allowed))
    (tmpfs / "file").touch()
    plan = runner.prepare("fallocate", path=tmpfs / "file", length=SIZE)
    assert [node.nid for node in plan.nodes] == [nid]
    assert left == [], "both ends were asked"
    runner.work(plan)
    assert os.stat(tmpfs / "file").st_blocks == SIZE // 512


def test_a_policy_that_may_not_be_read(
    runner: Runner, memory: Memory, tmpfs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse() -> None:
        raise PermissionError

    monkeypatch.setattr(numa_pages, "allowed_nodes", refuse)
    (tmpfs / "file").touch()
    assert [node.nid for node in _planned(runner, "fallocate", {"path": tmpfs / "file", "length": SIZE})] == [NO_NODE]


def _planned(
    runner: Runner, name: str, texts: dict[str, object], remaining: list[Node] | None = None, **more: object
) -> Sequence[Node]:
    plan = runner.prepare(name, remaining, **texts, **more)
    plan.abort()
    return plan.nodes
