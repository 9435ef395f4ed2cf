"""docs/reference/ktask.md: its example clients run unchanged, and it names every field."""

from __future__ import annotations

import dataclasses
import os
import re
from pathlib import Path
from typing import Any

from ktaskfs.host.page_cache import cached_bytes
from ktaskfs.ktask import Control
from tests.support.poll import until

DOCUMENT = (Path(__file__).resolve().parents[2] / "docs" / "reference" / "ktask.md").read_text()
CLIENTS = re.findall(r"```python\n(.*?)```", DOCUMENT, re.DOTALL)


LARGE = 512 << 20
"""The size of a file whose chunks are larger than the read-ahead of one POSIX_FADV_WILLNEED: 8 MiB on a usual disk."""


def test_the_first_client_brings_all_of_a_file_into_the_cache(disk: Path) -> None:
    file = disk / "big"
    file.touch()
    os.truncate(file, LARGE)  # a hole takes pages of the cache as well
    with file.open("rb") as opened:

        def brings_all() -> bool:
            names: dict[str, Any] = {}
            exec(CLIENTS[0].replace("/tmp/big", str(file)), names)
            os.close(names["fd"])
            os.close(names["null"])
            found = cached_bytes(opened.fileno(), 0, LARGE, overlay=False)
            assert found is not None
            return found.resident == LARGE

        # Another process may drop caches meanwhile. A client that leaves something out does so each time.
        until(brings_all, "all of it is in the cache")


def test_the_list() -> None:
    names: dict[str, Any] = {}
    exec(CLIENTS[1], names)
    values, link = [], names["first"]
    while link is not None:
        values.append(link.value)
        link = link.after
    assert values == list(range(1, 1001))


def test_every_field_of_control_is_explained() -> None:
    for field in dataclasses.fields(Control):
        assert re.search(rf"^\| .*`{field.name}[(`]", DOCUMENT, re.MULTILINE), field.name
