"""Pools, nodes and memory against what other programs read."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

from ktaskfs.host.hugepages import pool_of, read_node_pools, read_pools
from ktaskfs.host.kernel import Kernel
from ktaskfs.host.topology import read_nodes, usable_cpus
from tests.support import filesystems, hugepages
from tests.support.forked import run_forked

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def made_up(tmp_path: Path) -> Iterator[Kernel]:
    """A machine made of files: two nodes, the second only with memory; no /proc."""
    for name, text in {
        "devices/system/node/online": "0,2",
        "devices/system/node/node0/cpulist": "0-3",
        "devices/system/node/node0/meminfo": "Node 0 MemTotal:  1000 kB\nNode 0 MemFree:  400 kB\nNode 0 Pages: 3\n",
        "devices/system/node/node2/cpulist": "",
        "devices/system/node/node2/meminfo": "Node 2 MemTotal:  2000 kB\nNode 2 MemFree:  5 kB\n",
        "devices/system/node/node2/hugepages/hugepages-2048kB/nr_hugepages": "7",
        "devices/system/node/node2/hugepages/hugepages-2048kB/free_hugepages": "6",
        "devices/system/node/node2/hugepages/hugepages-2048kB/surplus_hugepages": "1",
        "kernel/other": "",
    }.items():
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text + "\n")
    (tmp_path / "meminfo").write_text("MemTotal: 10 kB\nMemFree: 4 kB\nMemAvailable: 6 kB\nSwapFree: 1 kB\n")
    directory = os.open(tmp_path, os.O_PATH)
    yield Kernel(proc=directory, sys=directory, zero=-1)
    os.close(directory)


def test_pools_follow_the_machine(root: None, kernel: Kernel) -> None:
    assert [pool.size for pool in read_pools(kernel)] == filesystems.page_sizes()
    size = filesystems.page_sizes()[0]
    with hugepages.reserved(size, 4) as expected:
        pool = pool_of(kernel, size)
        assert pool is not None
        assert (pool.total, pool.free, pool.reserved) == (expected.total, expected.free, expected.reserved)
        assert sum(each.total for each in read_node_pools(kernel) if each.size == size) == pool.total
    assert pool_of(kernel, 12345) is None


def test_a_machine_without_huge_pages_has_no_pools(made_up: Kernel) -> None:
    assert read_pools(made_up) == ()
    pools = read_node_pools(made_up)
    assert [(pool.node, pool.size, pool.total, pool.free, pool.surplus) for pool in pools] == [(2, 2 << 20, 7, 6, 1)]


def test_nodes_with_and_without_cpus(made_up: Kernel) -> None:
    first, second = read_nodes(made_up)
    assert (first.nid, first.cpus, first.total, first.free) == (0, (0, 1, 2, 3), 1000 << 10, 400 << 10)
    assert (second.nid, second.cpus, second.total) == (2, (), 2000 << 10)
    assert made_up.available_memory() == 7 << 10


def test_a_machine_without_numa_is_one_node(tmp_path: Path) -> None:
    (tmp_path / "meminfo").write_text("MemTotal: 10 kB\nMemFree: 4 kB\n")
    directory = os.open(tmp_path, os.O_PATH)
    (node,) = read_nodes(Kernel(proc=directory, sys=directory, zero=-1))
    assert (node.nid, node.cpus, node.total, node.free) == (0, usable_cpus(), 10 << 10, 4 << 10)
    os.close(directory)


def test_the_real_nodes_have_all_the_cpus(kernel: Kernel) -> None:
    nodes = read_nodes(kernel)
    assert {cpu for node in nodes for cpu in node.cpus} == set(range(os.cpu_count() or 0))
    listed = Path("/sys/devices/system/node/node0/meminfo").read_text()
    total = re.search(r"MemTotal:\s+(\d+) kB", listed)
    assert total is not None
    assert nodes[0].total == int(total[1]) << 10


def test_usable_cpus_follow_the_affinity() -> None:
    def one() -> tuple[int, ...]:
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
        return usable_cpus()

    assert run_forked(one) == [max(os.sched_getaffinity(0))]


def test_available_memory_is_about_what_psutil_says(kernel: Kernel) -> None:
    expected = psutil.virtual_memory().available + psutil.swap_memory().free
    assert abs(kernel.available_memory() - expected) < 4 << 30
