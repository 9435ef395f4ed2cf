"""``ktaskfs doctor``: problems of this machine, each with the command that fixes it."""

from __future__ import annotations

import itertools
import json
from typing import TYPE_CHECKING

from ktaskfs.cli import check_limits, check_pools, check_service
from ktaskfs.cli.machine import MachineFiles
from ktaskfs.cli.mounted import Mounted
from ktaskfs.units import printable

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterable, Iterator

    from ktaskfs.cli.machine import Diagnosis


def doctor(given: argparse.Namespace) -> int:
    """Print the findings; 0 only without problems."""
    found = list(findings(MachineFiles(), Mounted(given.mount, patience=0)))
    for each in found:
        print(_json(each) if given.json else _lines(each))
    return int(any(each.is_wrong for each in found))


def findings(machine: MachineFiles, mounted: Mounted) -> Iterable[Diagnosis]:
    """The findings of all checks."""
    service = check_service.service_state(machine)
    if check_service.answers(mounted):
        of_mount: Iterator[Diagnosis] = itertools.chain(
            check_service.check_mount(machine, mounted, service),
            check_service.check_access(mounted),
            check_service.check_threads(machine, mounted),
            check_service.check_spawner(machine, mounted),
        )
    else:
        of_mount = check_service.check_hung(mounted, service)
    return itertools.chain(
        check_service.check_system(machine),
        check_service.check_fuse(machine),
        check_service.check_service(service),
        check_service.check_states(machine, mounted),
        of_mount,
        check_pools.check_pools(machine),
        check_pools.check_balance(machine),
        check_pools.check_fragmentation(machine),
        check_pools.check_mounts(machine),
        check_limits.check_overcommit(machine),
        check_limits.check_groups(machine),
        check_limits.check_thp(machine),
    )


def _json(finding: Diagnosis) -> str:
    return json.dumps({**finding._asdict(), "level": finding.level.name, "mend": finding.mend})


def _lines(finding: Diagnosis) -> str:
    mend = "" if finding.mend is None else f"\n{'':9}{printable(finding.mend)}"
    return f"{finding.level.name:7}  {finding.check}: {printable(finding.text)}{mend}"
