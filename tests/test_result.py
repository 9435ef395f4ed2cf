"""The text of a result is never longer than a task keeps."""

from __future__ import annotations

import pytest

from ktaskfs.result import RESULT_MAX, fitting, with_table


def test_the_rows_that_fit_are_lines_and_the_rest_is_counted() -> None:
    assert fitting(["a", "bb", "c"], 7) == ("a\nbb\nc\n", 0)
    assert fitting(["a", "bb", "c"], 6) == ("a\nbb\n", 1)
    assert fitting(["a", "bb", "c"], 4) == ("a\n", 2), "what comes after a row that is left out is left out, too"
    assert fitting(["a", None, "c"], 4) == ("a\nc\n", 1)
    assert fitting(["é"], 2) == ("", 1)
    assert fitting(["é"], 3) == ("é\n", 0)
    assert fitting(["a"], -1) == ("", 1)


def test_a_table_says_what_it_lacks() -> None:
    counts = {"files": 2, "page_size": 4096}
    assert with_table(counts, "what path", ["x a", "y b"], more=3, after="z\n") == (
        "files 2\npage_size 4096\nleft_out 3\nwhat path\nx a\ny b\nz\n"
    )
    assert with_table({}, "", ["x a"]) == "left_out 0\nx a\n"


@pytest.mark.parametrize("size", [7, 100, 1000])
def test_a_long_table_has_no_row_that_is_cut(size: int) -> None:
    rows = [f"{number:0{size}}€" for number in range(2 * RESULT_MAX // size)]
    text = with_table({"files": 1}, "what", rows, after="€" * 100)
    start, _, table = text.partition("\nwhat\n")
    kept = table.removesuffix("€" * 100).splitlines()
    assert kept == rows[: len(kept)]
    assert start == f"files 1\nleft_out {len(rows) - len(kept)}"
    assert RESULT_MAX - size - 64 < len(text.encode()) <= RESULT_MAX
