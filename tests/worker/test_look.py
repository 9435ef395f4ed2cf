"""The texts about holders of huge pages."""

from __future__ import annotations

import json

from ktaskfs.host.hugepages import Pool
from ktaskfs.host.pool_holders import HolderProcess, HoldersReport, Holding
from ktaskfs.worker.look import holders_json, holders_table

NAME = "a\x1b[31m"
SHOWN = r"a\033[31m"


def test_no_name_that_a_process_chose_is_a_command_to_the_terminal() -> None:
    holding = Holding(2 << 20, "memfd", NAME, 1, 0, 7, (HolderProcess(3, NAME, 7),))
    pool = Pool(2 << 20, None, total=1, free=0, reserved=0, surplus=0, overcommit=0)
    report = HoldersReport((holding,), (pool,), (f"4:{NAME}",))
    found = json.loads(holders_json(report))
    (held,) = found["holdings"]
    assert (held["path"], held["processes"], found["hung"]) == (
        SHOWN,
        [{"pid": 3, "name": SHOWN, "uid": 7}],
        [f"4:{SHOWN}"],
    )
    assert NAME not in holders_table(report)
