"""The mapped memory of a process, counted in the page tables.

The counters (VmRSS and its parts in /proc/PID/status, statm) are kept for each CPU and summed up from time to time:
they may lack the latest pages of a thread (Documentation/filesystems/proc.rst). smaps walks the page tables.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


def resident(pid: int) -> int:
    """Bytes of all that process ``pid`` has mapped, without huge pages of hugetlbfs."""
    return _sum(Path(f"/proc/{pid}/smaps_rollup").read_text(), "Rss")


def own_memory(smaps_rollup: str) -> int:
    """Bytes that belong to no file of a disk, by the text of ``smaps_rollup``."""
    return _sum(smaps_rollup, "Anonymous", "Pss_Shmem")


def mapped_from(paths: Iterable[Path]) -> int:
    """Bytes of these files that this process has mapped now; of another link to a file, or after unlink, none."""
    names = {str(path) for path in paths}
    total = 0
    for mapping in re.split(r"(?m)^(?=[0-9a-f]+-[0-9a-f]+ )", Path("/proc/self/smaps").read_text())[1:]:
        fields = mapping.partition("\n")[0].split(maxsplit=5)
        if fields[-1] in names:
            total += _sum(mapping, "Rss")
    return total


def _sum(text: str, *names: str) -> int:
    return sum(int(found) << 10 for found in re.findall(rf"(?m)^(?:{'|'.join(names)}): *(\d+) kB", text))
