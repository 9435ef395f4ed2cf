"""A new operation is one file: in a copy of the project, the mount, its texts and the contract test take it up."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest

from tests.support.daemon import ROOT, Mount, interpreter
from tests.support.poll import DEADLINE
from tests.support.shell import run

if TYPE_CHECKING:
    from pathlib import Path

SOURCE = '''
"""``count``: how many bytes of a range are zero."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING

from ktaskfs.errors import TargetError
from ktaskfs.memory.source import Source
from ktaskfs.operations.ranges._range import RangeOperation, RangeParameters, resolve_extent

if TYPE_CHECKING:
    from ktaskfs.operations.base.plan import Plan, Preparation


class CountParameters(RangeParameters):
    """A range, by default to the end of the file."""


class Count(RangeOperation[CountParameters]):
    """Reads the range and counts."""

    name = "count"
    description = "Count the zero bytes of the range of any file."
    parameters = CountParameters
    no_undo = "counting changes nothing"
    no_resume = "the earlier sum is lost"

    def prepare(self, preparation: Preparation[CountParameters]) -> Plan:
        """Open for reading; raises InvalidValue past the end of the file, TargetError."""
        parameters = preparation.parameters
        source = preparation.keep(Source(preparation.kernel, parameters.path))
        extent = resolve_extent(parameters, source.file.size(), may_grow=False)
        found: list[int] = []

        def count(start: int, end: int) -> None:
            view = memoryview(bytearray(end - start))
            source.read(view, start)
            found.append(bytes(view).count(0))

        control = preparation.control(count, least=4096, most=1 << 20, align=4096)
        nodes = preparation.nodes(extent, 4096)
        return preparation.plan(nodes, control, lambda outcome: f"zeros {sum(found)}\\n")
'''


@pytest.fixture
def copy(area: Path) -> Path:
    """A copy of the project, with one more file."""
    root = area / "copy"
    root.mkdir()
    for name in ("ktaskfs", "tests", "docs", "bench"):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("results", "plots"))  # as compiled, too
    for name in ("pyproject.toml", "README.md", "ARCHITECTURE.md"):
        shutil.copy(ROOT / name, root)
    (root / ".venv").symlink_to(ROOT / ".venv")
    (root / "ktaskfs/operations/ranges/count.py").write_text(SOURCE)
    return root


def test_the_contract_takes_it_up(copy: Path, root: None) -> None:
    contract = ("tests/operations/test_contract.py", "tests/operations/ranges/test_contract.py")
    done = run(interpreter(copy), "-m", "pytest", "-q", *contract, "-k", "count", cwd=copy, timeout=4 * DEADLINE)
    assert done.status == 0, done.out + done.err
    assert int(done.out.split(" passed")[0].split()[-1]) > 15


def test_the_documents_take_it_up(copy: Path, area: Path) -> None:
    for command in ("docs/reference/generate.py",), ("docs/man/generate.py", str(area)):
        done = run(interpreter(copy), *command, cwd=copy, env={"PYTHONPATH": str(copy)})
        assert done.status == 0, done.err
    page = (copy / "docs/reference/operations/count.md").read_text()
    assert "# count\n\nCount the zero bytes of the range of any file.\n" in page
    assert "`undo=1`: refused, counting changes nothing. Resume of a part: refused, the earlier sum is lost." in page
    row = "| [count](operations/count.md) | a file | bytes |\n"
    assert row in (copy / "docs/reference/README.md").read_text()
    assert '.SS "count"\n' in (area / "ktaskfs-operations.7").read_text()


def test_the_mount_has_it(copy: Path, area: Path, root: None) -> None:
    (area / "mount").mkdir()
    (area / "state").mkdir()
    (area / "file").write_bytes(b"x\0" * 5000)
    here = ("env", f"PYTHONPATH={copy}")  # for the spawner, whose working directory is another
    mount = Mount(area / "mount", statedir=area / "state", log=area / "log", root=copy, prefix=here)
    try:
        assert "Count the zero bytes" in mount.read("README")
        assert mount.read("operations/count/description") == "Count the zero bytes of the range of any file.\n"
        assert "offset" in mount.read("operations/count/parameters")
        assert mount.write("tasks/control", f"count path={area}/file name=zeros") == (0, None)
        assert mount.read("tasks/zeros/wait").endswith("done\n")
        assert mount.read("tasks/zeros/result") == "zeros 5000\n"
    finally:
        mount.close()
