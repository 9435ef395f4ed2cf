"""A process with its caller's identity that finds the holders of the machine's huge pages."""

from __future__ import annotations

import contextlib
import gc
import json
import os
from collections import defaultdict
from typing import TYPE_CHECKING, Any, Final

import setproctitle

from ktaskfs.host.pool_holders import Holding, find_holdings
from ktaskfs.units import escaped, format_size, table
from ktaskfs.worker import protocol
from ktaskfs.worker.run import explain
from ktaskfs.worker.seal import become_caller

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from ktaskfs.host.cgroups import GroupMounts
    from ktaskfs.host.hugepages import Pool
    from ktaskfs.host.kernel import Kernel
    from ktaskfs.host.pool_holders import HolderProcess, HoldersReport

HEADER: Final = ("size", "kind", "used", "reserved", "uids", "processes", "path")
SHOWN_MAX: Final = 500
"""Maximum holdings shown one by one: the largest."""
BYTES_MAX: Final = 128 << 10
"""Their maximum bytes as JSON."""
PROCESSES_MAX: Final = 8
"""Maximum processes named for one holding."""


def look(request: protocol.LookRequest, kernel: Kernel, fds: Sequence[int], cgroups: GroupMounts) -> None:
    """Become the caller, scan, and write the findings or the error into the first of ``fds``."""
    output, *callers = fds
    setproctitle.setproctitle("ktaskfs: look")
    gc.disable()  # it makes many small objects and ends soon
    try:
        kernel = become_caller(request.identity, callers, cgroups, kernel)
        os.fchdir(kernel.proc)
        report = shortened(find_holdings(kernel, request.identity["pid"]))
        answer: protocol.Message = protocol.Found(holders_table(report), holders_json(report))
    except Exception as error:
        answer = protocol.WorkerRefused(*explain(error))
    with contextlib.suppress(BrokenPipeError), open(output, "wb") as file:  # nobody waits any more
        file.write(protocol.encode(answer))


def shortened(report: HoldersReport) -> HoldersReport:
    """The report, with small holdings combined if there are too many."""
    room, kept, left = BYTES_MAX, list[Holding](), defaultdict[int, list[Holding]](list)
    for each in sorted(report.holdings, key=lambda each: -(each.used + each.reserved) * each.page_size):
        room -= len(json.dumps(_fields(each)))
        if room >= 0 and len(kept) < SHOWN_MAX:
            kept.append(each)
        else:
            left[each.page_size].append(each)
    for size, them in left.items():
        used, reserved = _sum(them)
        kept.append(Holding(size, "more", f"{len(them)} more", used, reserved, 0))
    return report._replace(holdings=tuple(sorted(kept, key=lambda each: each.page_size)))


def holders_table(report: HoldersReport) -> str:
    """The table for people and awk: no column is empty."""
    rows: list[Sequence[object]] = []
    for pool in report.pools:
        size = format_size(pool.size)
        of_it = [each for each in report.holdings if each.page_size == pool.size]
        rows += [
            (
                size,
                each.kind,
                each.used,
                each.reserved,
                _uids(each),
                _names(each.processes),
                escaped(each.path) or "-",
            )
            for each in of_it
        ]
        for name, (used, reserved) in _sums(pool, of_it).items():
            rows.append((size, name, used, reserved, "-", "-", "-"))
    rows += [("-", "hung", "-", "-", "-", _word(each), "-") for each in report.hung]
    return table(HEADER, rows)


def holders_json(report: HoldersReport) -> str:
    """For programs: an object on one line.

    A process chooses its name, and jq and ``ktaskfs top`` show it on a terminal.
    """
    pools = []
    for pool in report.pools:
        sums = _sums(pool, [each for each in report.holdings if each.page_size == pool.size])
        pools.append(
            {"size": pool.size}
            | {name: {"used": used, "reserved": reserved} for name, (used, reserved) in sums.items()}
        )
    holdings = [_fields(each) for each in report.holdings]
    hung = [escaped(each) for each in report.hung]
    return json.dumps({"pools": pools, "holdings": holdings, "hung": hung}) + "\n"


def _sums(pool: Pool, holdings: Iterable[Holding]) -> dict[str, tuple[int, int]]:
    used, reserved = _sum(holdings)
    in_use = pool.total - pool.free
    return {
        "explained": (used, reserved),
        "pool": (in_use, pool.reserved),
        "unexplained": (in_use - used, pool.reserved - reserved),
    }


def _sum(holdings: Iterable[Holding]) -> tuple[int, int]:
    them = list(holdings)
    return sum(each.used for each in them), sum(each.reserved for each in them)


def _fields(holding: Holding) -> dict[str, Any]:
    return {
        "size": holding.page_size,
        "kind": holding.kind,
        "used": holding.used,
        "reserved": holding.reserved,
        "uid": holding.uid,
        "path": escaped(holding.path) or None,
        "processes": [each._replace(name=escaped(each.name))._asdict() for each in holding.processes[:PROCESSES_MAX]],
        "more_processes": max(0, len(holding.processes) - PROCESSES_MAX),
    }


def _uids(holding: Holding) -> str:
    """The owner's first, then those of the processes."""
    return ",".join(map(str, dict.fromkeys([holding.uid, *sorted(each.uid for each in holding.processes)])))


def _names(processes: Sequence[HolderProcess]) -> str:
    words = [_word(f"{each.pid}:{each.name}") for each in processes[:PROCESSES_MAX]]
    if len(processes) > PROCESSES_MAX:
        words.append(f"+{len(processes) - PROCESSES_MAX}")
    return ",".join(words) or "-"


def _word(text: str) -> str:
    """One word of a comma-separated list."""
    return escaped(text).replace(" ", "\\040").replace(",", "\\054")
