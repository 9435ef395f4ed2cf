"""The share of the memory's bandwidth that each operation uses, from the figures of the other benchmarks.

Usage: python -m bench.bandwidth [--smoke] (nothing is measured; the others must have been run on this machine)
"""

from __future__ import annotations

import json
import statistics
from typing import TYPE_CHECKING, Any, Final

from bench.harness import GIB, HERE, Section, Table, main

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bench.harness import Settings

PASSES: Final = {
    "Preallocating": 1,
    "`clear`": 1,
    "`fill`": 1,
    "`verify`": 1,
    "`checksum": 1,
    "`compare`": 2,
    "`copy`": 2,
}
"""By how a section's title begins: how often each byte of the range goes through memory, read or written."""
LIMIT: Final = ("main_job", "`clear`", "C, memset, 2 threads")
"""The benchmark, section and contender that count as all of the bandwidth."""


def figures() -> Iterator[tuple[str, str, str, float]]:
    """Benchmark, section, contender and GiB/s of all that was measured by the byte."""
    for path in sorted((HERE / "results").glob("*.json")):
        sections: list[dict[str, Any]] = json.loads(path.read_text()).get("sections", [])
        for section in sections:
            for series in section["series"]:
                work = series.get("work") or section["work"]
                if work:
                    yield path.stem, section["title"], series["name"], work / statistics.median(series["values"]) / GIB


def shares(settings: Settings) -> list[Section]:
    known = list(figures())
    limit = next(
        rate for name, title, who, rate in known if name == LIMIT[0] and title.startswith(LIMIT[1]) and who == LIMIT[2]
    )
    rows = []
    for _, title, who, rate in known:
        passes = next((count for begin, count in PASSES.items() if title.startswith(begin)), 0)
        if passes and who.startswith("ktaskfs"):
            rows.append(
                [
                    title,
                    who.removeprefix("ktaskfs").strip(", ") or "2 threads",
                    f"{rate:.1f}",
                    f"{passes * rate / limit:.0%}",
                ]
            )
    table = Table(["", "threads", "median GiB/s", "share"], rows)
    note = f"Shares of {limit:.1f} GiB/s, which two threads of memset write. Copied or compared bytes count twice."
    return [Section("Operations on 1 to 4 GiB", [], tables=[table], note=note)]


if __name__ == "__main__":
    main("bandwidth", "Share of the memory's bandwidth", shares)
