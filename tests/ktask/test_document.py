"""What docs/ktask.md shows: its clients run as they stand there, and it names every field."""

from __future__ import annotations

import dataclasses
import os
import re
from pathlib import Path
from typing import Any

from ktaskfs.ktask import Control

DOCUMENT = (Path(__file__).resolve().parents[2] / "docs" / "ktask.md").read_text()
CLIENTS = re.findall(r"```python\n(.*?)```", DOCUMENT, re.DOTALL)


def test_the_first_client(tmp_path: Path) -> None:
    (tmp_path / "big").write_bytes(bytes(5 << 20))
    names: dict[str, Any] = {}
    exec(CLIENTS[0].replace("/tmp/big", str(tmp_path / "big")), names)
    os.close(names["fd"])


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
