"""The recipes of docs/how-to for memory without a file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.holding import holding
from tests.support.hugepages import reserved, smallest_pages

if TYPE_CHECKING:
    from tests.support.daemon import Mount


def mappings(pid: int) -> list[tuple[str, int, str]]:
    """The range, the size and the name of each mapping of a process."""
    found = []
    for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
        where, *_, name = line.split(maxsplit=5) if len(line.split()) > 5 else [*line.split(), ""]
        start, end = (int(each, 16) for each in where.split("-"))
        found.append((where, end - start, name))
    return found


@smallest_pages
@pytest.mark.parametrize("how", ["shared", "sysv"])
def test_memory_without_a_file_is_reached_through_its_process(
    mounted: Mount, page_size: int, area: Path, how: str
) -> None:
    """As of a database: an anonymous shared mapping, and a System V segment."""
    with reserved(page_size, 3), holding(how, page_size, area / "unused") as holder:
        (where,) = [place for place, _, name in mappings(holder.pid) if "/anon_hugepage" in name or "/SYSV" in name]
        path = f"/proc/{holder.pid}/map_files/{where}"
        for spec in (f"fallocate path={path} name=db", f"survey path={path} name=all"):
            assert mounted.write("tasks/control", spec) == (0, None), mounted.read("info/last_cmd_status")
            assert mounted.read(f"tasks/{spec.rpartition('=')[2]}/wait").endswith("done\n")
        counts = dict(line.split() for line in mounted.read("tasks/all/result").splitlines() if line.count(" ") == 1)
        assert counts["present"] == counts["pages"] == "3"
