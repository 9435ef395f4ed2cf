"""``ktaskfs pool save``."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from ktaskfs.cli.arguments import SAVED_POOLS
from ktaskfs.cli.pool import HEAD, pools
from tests.support.daemon import ROOT
from tests.support.shell import Outcome, run

if TYPE_CHECKING:
    from tests.support.daemon import Mount

COMMAND = [sys.executable, "-m", "ktaskfs.cli.main", "pool", "save"]
NODES = """\
size  node  total  free  reserved  surplus
2M    -     515    100   0         3
1G    -     0      0     0         0
2M    0     512    100   -         2
2M    1     3      0     -         1
1G    0     0      0     -         0
1G    1     0      0     -         0
"""


def save(*arguments: str | Path) -> Outcome:
    return run(*COMMAND, *map(str, arguments), cwd=ROOT, env={"PYTHONPATH": str(ROOT)})


def test_a_line_for_each_pool_without_what_is_surplus() -> None:
    assert dict(pools(NODES)) == {
        "/sys/devices/system/node/node0/hugepages/hugepages-2048kB/nr_hugepages": 510,
        "/sys/devices/system/node/node1/hugepages/hugepages-2048kB/nr_hugepages": 2,
    }


def test_a_node_without_pages_of_a_size_that_others_have() -> None:
    """At boot the kernel gives it a share of `hugepages=`."""
    table = NODES.replace("2M    1     3 ", "2M    1     1 ")
    assert list(dict(pools(table)).values()) == [510, 0]


def test_a_kernel_without_nodes() -> None:
    table = "size node total free reserved surplus\n64K - 7 0 0 0\n1G - 2 0 0 0\n"
    assert dict(pools(table)) == {
        "/sys/kernel/mm/hugepages/hugepages-64kB/nr_hugepages": 7,
        "/sys/kernel/mm/hugepages/hugepages-1048576kB/nr_hugepages": 2,
    }


def test_the_file_is_replaced_whole(tmp_path: Path) -> None:
    (tmp_path / "info").mkdir()
    (tmp_path / "info/hugepages").write_text(NODES)
    output = tmp_path / "tmpfiles.d" / "pools.conf"
    for _ in range(2):
        outcome = save("--mount", tmp_path, "--output", output)
        assert (outcome.status, outcome.err) == (0, "")
        assert output.read_text() == outcome.out
        assert outcome.out.startswith(HEAD)
        assert outcome.out.count("\nw! /sys/") == 2
    assert output.stat().st_mode & 0o777 == 0o644
    assert [path.name for path in output.parent.iterdir()] == ["pools.conf"]
    before = Path(SAVED_POOLS).exists()
    assert save("--mount", tmp_path, "--output", "-").out == outcome.out
    assert Path(SAVED_POOLS).exists() == before


def test_what_cannot_be_read_or_written(tmp_path: Path) -> None:
    outcome = save("--mount", tmp_path, "--output", tmp_path / "none")
    assert (outcome.status, outcome.out) == (1, "")
    assert outcome.err.startswith("ktaskfs: ")
    assert not (tmp_path / "none").exists()
    (tmp_path / "info").mkdir()
    (tmp_path / "info/hugepages").write_text(NODES)
    for directory in (tmp_path, ".", "/"):
        outcome = save("--mount", tmp_path, "--output", directory)
        assert (outcome.status, outcome.err) == (1, f"ktaskfs: write {directory}: Is a directory\n")
    assert [path.name for path in tmp_path.iterdir()] == ["info"]


def test_a_device_is_not_replaced(tmp_path: Path) -> None:
    """root may do that to /dev/null; a link to it in /etc/tmpfiles.d masks the file of that name."""
    (tmp_path / "info").mkdir()
    (tmp_path / "info/hugepages").write_text(NODES)
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "link").symlink_to("fifo")
    for name in ("fifo", "link"):
        outcome = save("--mount", tmp_path, "--output", tmp_path / name)
        words = f"ktaskfs: {tmp_path / name} is not a regular file; --output=- writes none\n"
        assert (outcome.status, outcome.err) == (1, words)
    assert (tmp_path / "fifo").is_fifo()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fifo", "info", "link"]


def test_a_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "info").mkdir()
    (tmp_path / "info/hugepages").write_text(NODES)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "link").symlink_to("elsewhere/file")
    (tmp_path / "elsewhere/.file.new").symlink_to(tmp_path / "trap")
    outcome = save("--mount", tmp_path, "--output", tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "elsewhere/file").read_text() == outcome.out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["elsewhere", "info", "link"]


def test_a_link_of_somebody_else_is_not_followed(root: None, tmp_path: Path) -> None:
    (tmp_path / "info").mkdir()
    (tmp_path / "info/hugepages").write_text(NODES)
    (tmp_path / "canary").write_text("canary")
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o1777)
    (shared / "own").symlink_to("trap")
    (shared / "trap").symlink_to("../canary")
    os.chown(shared / "trap", 4_000_000_000, 4_000_000_000, follow_symlinks=False)
    for name in ("own", "trap"):
        outcome = save("--mount", tmp_path, "--output", shared / name)
        assert (outcome.status, outcome.err) == (1, f"ktaskfs: write {shared / name}: Permission denied\n")
    assert (tmp_path / "canary").read_text() == "canary"


def test_of_a_mount(mounted: Mount) -> None:
    outcome = save("--mount", mounted.path, "--output", "-")
    assert outcome.out.startswith(HEAD)
    assert outcome.out[len(HEAD) :].count("\n") == len(list(pools(mounted.read("info/hugepages"))))
