"""``info/holders`` under each service, whose sandbox limits the process that looks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from tests.support import huge_holder
from tests.support.hugepages import reserved
from tests.support.poll import DEADLINE
from tests.systemd.test_callers import UNITS

if TYPE_CHECKING:
    from tests.systemd.machine import Machine

SIZE: Final = 2 << 20
SCRIPT: Final = "/run/huge_holder.py"
HELD: Final = f"""
mount -t hugetlbfs -o pagesize=2M none /dev/hugepages
coproc python3 -I {SCRIPT} "$1" {SIZE} /dev/hugepages/f
read -r -u ${{COPROC[0]}}
echo $COPROC_PID
until # what it says may be a second old
    said=$(cat /run/ktaskfs/info/holders.json)
    [[ $said == *": $COPROC_PID, "* || $SECONDS -gt {DEADLINE:.0f} ]]
do
    sleep 0.02
done
printf '%s\n' "$said"
kill $COPROC_PID
rm -f /dev/hugepages/f
umount /dev/hugepages
"""
KINDS: Final = {"file": (3, 1), "memfd": (2, 1), "memfd, closed": (2, 1), "shared": (1, 2), "private, forked": (3, 2)}
"""Pages in use and reserved."""


@pytest.mark.parametrize("unit", UNITS)
def test_root_sees_them(machine: Machine, unit: str) -> None:
    (machine.root / SCRIPT.lstrip("/")).write_text(Path(huge_holder.__file__).read_text())
    other = next(each for each in UNITS if each != unit)
    assert machine.sh(f"systemctl stop {other} && systemctl start {unit}").status == 0
    try:
        machine.until_mounted()
        for how, pages in KINDS.items():
            with reserved(SIZE, 8):
                outcome = machine.run("bash", "-c", HELD, "bash", how)
                pid, _, text = outcome.out.partition("\n")
                assert text, outcome
                (found,) = [
                    each
                    for each in json.loads(text)["holdings"]
                    if int(pid) in {process["pid"] for process in each["processes"]}
                ]
                assert (found["used"], found["reserved"]) == pages, how
    finally:
        machine.sh(f"systemctl stop {unit}; systemctl start {UNITS[0]}")
        machine.until_mounted()
