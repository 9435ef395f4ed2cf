"""The lines of /proc/PID/maps."""

from __future__ import annotations

import mmap
import os
from typing import TYPE_CHECKING

from ktaskfs.host.maps import Area, all_except, parse_areas, read_areas

if TYPE_CHECKING:
    import re
    from pathlib import Path

LINES = b"""\
00400000-00452000 r-xp 00001000 08:02 173521                             /usr/bin/a b
e03000-e24000 rw-p 00000000 00:00 0                                      [heap]
7f0000000000-7f0000200000 rw-s 00000000 00:10 7                          /anon_hugepage (deleted)
7f0000200000-7f0000400000 rw-s 00200000 00:10 7                          /anon_hugepage (deleted)
7f0000400000-7f0000600000 rw-p 00000000 08:02 5
ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0                  [vsyscall]
"""
DISK = os.makedev(8, 2)
MEMORY = os.makedev(0, 0x10)


def test_each_line_is_an_area() -> None:
    first, heap, shared, *_, last = parse_areas(LINES.splitlines(keepends=True))
    assert first == Area(0x400000, 0x452000, "r-xp", 0x1000, DISK, 173521, "/usr/bin/a b")
    assert (first.size, first.is_shared) == (0x52000, False)
    assert (heap.name, heap.inode, heap.device) == ("[heap]", 0, 0)
    assert (shared.name, shared.is_shared, shared.device) == ("/anon_hugepage (deleted)", True, MEMORY)
    assert last.start == 0xFFFFFFFFFF600000


def test_own_areas_hold_the_code_of_python() -> None:
    proc = os.open("/proc", os.O_PATH | os.O_DIRECTORY)
    areas = list(read_areas(proc, "self/maps"))
    os.close(proc)
    interpreter = os.stat("/proc/self/exe")
    assert (interpreter.st_dev, interpreter.st_ino) in {(each.device, each.inode) for each in areas}
    assert [each.start for each in areas] == sorted(each.start for each in areas)


def test_a_name_is_that_of_the_file(tmp_path: Path) -> None:
    file = tmp_path / "two\nlines, back\\slash"
    file.write_bytes(b"x")
    proc = os.open("/proc", os.O_PATH | os.O_DIRECTORY)
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, prot=mmap.PROT_READ):
        assert str(file) in {each.name for each in read_areas(proc, "self/maps")}
    os.close(proc)


def lines_of(pattern: re.Pattern[bytes]) -> list[str]:
    return [each.name for each in parse_areas(b"".join(pattern.findall(LINES)).splitlines(keepends=True))]


def test_lines_of_other_devices() -> None:
    assert lines_of(all_except([DISK, 0])) == ["/anon_hugepage (deleted)"] * 2
    assert lines_of(all_except([MEMORY, 0])) == ["/usr/bin/a b", ""]
    assert lines_of(all_except([DISK, MEMORY, 0])) == []
