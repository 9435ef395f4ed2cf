"""Tables of the mount: aligned columns with a header."""

from __future__ import annotations


def rows(table: str) -> list[dict[str, str]]:
    """The rows by the names in the header; the last column is the rest of the line."""
    header, *lines = (line.split() for line in table.splitlines())
    last = len(header) - 1
    return [dict(zip(header, [*words[:last], " ".join(words[last:])], strict=True)) for words in lines]
