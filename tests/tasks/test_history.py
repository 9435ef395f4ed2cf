"""What a resume believes of an earlier run."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from ktaskfs.span import Node
from tests.tasks.records import FINAL, RECORD

BEFORE: Final = RECORD.history._replace(boot="this")


def test_the_rest_of_the_last_run() -> None:
    again = BEFORE.continued("this")
    assert (again.remaining, again.base, again.planned) == ((Node(40, 60, -1),), 90, 60)
    assert (again.final, again.result, again.baseline) == (None, b"", BEFORE.baseline)


def test_a_run_that_never_began_leaves_the_rest_as_it_was() -> None:
    for final in (None, replace(FINAL, nodes=(), threads=())):
        again = BEFORE._replace(final=final).continued("this")
        assert (again.remaining, again.base, again.planned) == (BEFORE.remaining, BEFORE.base, 1)
        assert (again.final, again.baseline) == (None, BEFORE.baseline)


def test_a_first_run_that_never_began_leaves_no_file() -> None:
    again = BEFORE._replace(final=None, remaining=None, base=0).continued("this")
    assert (again.remaining, again.base, again.baseline) == (None, 0, None)


def test_after_another_boot_only_the_files_count() -> None:
    again = BEFORE.continued("another")
    assert (again.remaining, again.base, again.planned, again.final) == (None, 0, 0, None)
    assert (again.baseline, again.boot) == (BEFORE.baseline, "this"), "and still do if the start fails"
