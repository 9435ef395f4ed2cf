"""The text of a task's result, which is never longer than the daemon reads."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

RESULT_MAX: Final = 1 << 20
"""Bytes of a result that a task keeps."""
_COUNT: Final = 32
"""Bytes of the line ``left_out``, at most."""


def fitting(rows: Iterable[str | None], room: int) -> tuple[str, int]:
    """The first rows, as lines of at most ``room`` bytes together, and the number of rows left out.

    None is a row that no text can show: it is left out.
    """
    kept, left_out = list[str](), 0
    for row in rows:
        if row is not None and room >= 0:
            room -= len(row.encode()) + 1
        if row is None or room < 0:
            left_out += 1
        else:
            kept.append(f"{row}\n")
    return "".join(kept), left_out


def with_table(
    counts: Mapping[str, object], header: str, rows: Iterable[str], *, more: int = 0, after: str = ""
) -> str:
    """A line for each of the ``counts`` and for ``left_out``; a table of the first rows that there is room for; then
    ``after``.

    ``header`` may be empty. ``more``: rows of the table that are not among ``rows``, because nobody kept them.
    """
    start, head = lines(counts), f"{header}\n" if header else ""
    table, left_out = fitting(rows, RESULT_MAX - _COUNT - len((start + head + after).encode()))
    return f"{start}left_out {left_out + more}\n{head}{table}{after}"


def lines(counts: Mapping[str, object]) -> str:
    """A line ``NAME VALUE`` for each."""
    return "".join(f"{key} {value}\n" for key, value in counts.items())
