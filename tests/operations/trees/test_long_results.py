"""Results with more rows than there is room for."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from ktaskfs.errors import Finding
from ktaskfs.result import RESULT_MAX

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.runner import Runner

NAME = "€" * 80  # three bytes each


@pytest.mark.parametrize("operation", ["survey", "checksum"])
def test_rows_and_reasons_are_counted_in_bytes_and_none_is_cut(runner: Runner, disk: Path, operation: str) -> None:
    for number in range(1000):
        (disk / f"{number:04}{NAME}").symlink_to("nowhere")
        (disk / f"x{number:04}{NAME}").touch()
    for number in range(1000, 5000):
        (disk / f"x{number:04}{NAME}").touch()
    result = runner.result(runner.prepare(operation, path=disk, links=1))
    assert RESULT_MAX - 1024 < len(result.encode()) <= RESULT_MAX
    lines = result.splitlines()
    assert {len(line.split()[-1]) for line in lines if "€" in line} == {84, 85}, "all names are whole"
    rows = sum(f"x{line[-84:]}" in line and line.endswith(NAME) for line in lines)
    left_out = [line for line in lines if line.startswith(("left_out ", "# ")) and line.split()[1].isdecimal()]
    assert rows + int(left_out[0].split()[1]) == 5000


@pytest.mark.usefixtures("root")
def test_differences_of_many_files_with_long_names(runner: Runner, tmpfs: Path) -> None:
    directory = tmpfs
    for _ in range(4):
        directory = directory / ("\n" * 200)
        directory.mkdir()
    (directory / "file").write_bytes(b"x" * (4 << 20))
    with pytest.raises(Finding) as caught:
        runner.run("verify", path=f"{directory}/*", pattern="00")
    counts, _, table = caught.value.result.partition("\noffset differing expected found path\n")
    rows = [row.split(" ", 4) for row in table.splitlines()]
    assert {row[4].count("\\012") for row in rows} == {800}
    assert f"\nrows 1024\nleft_out {1024 - len(rows)}" in counts
    assert len(rows) < 1000
    assert RESULT_MAX - 4096 < len(caught.value.result) <= RESULT_MAX
