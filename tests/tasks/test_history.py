"""What a resume believes of an earlier run."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from ktaskfs.operations.base.resume import Baseline
from ktaskfs.span import Node
from ktaskfs.tasks.new_worker import planned
from ktaskfs.worker.protocol import Ready
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


def test_a_first_run_that_never_began_needs_its_process() -> None:
    """Another one may have its number by now."""
    baseline = Baseline({"pid": (7, 8, 0), "source": (1, 2, 3)}, end=2, size=2, total=1)
    before = BEFORE._replace(texts={"pid": "7"}, baseline=baseline, final=None, remaining=None, base=0)
    again = before.continued("this")
    assert (again.remaining, again.base) == (None, 0)
    assert again.baseline == Baseline({"pid": (7, 8, 0)}, end=0, size=0, total=1), "it may have other files"
    assert before._replace(texts={"pid": "9"}).continued("this").baseline is None, "its user has named another one"


def test_the_rest_is_that_of_its_files() -> None:
    """A worker may begin anew with other files, and the daemon may die before it lets the worker go."""
    again = BEFORE.continued("this")
    baseline = Baseline({"path": (1, 2, 3)}, end=2, size=2, total=51)
    assert planned(again, Ready(60, baseline._asdict(), {})) == again
    anew = planned(again, Ready(51, baseline._replace(files={"path": (1, 9, 3)})._asdict(), {}))
    assert (anew.remaining, anew.base, anew.planned) == (None, 0, 51)
    assert anew.continued("this").baseline is None


def test_after_another_boot_only_the_files_count() -> None:
    again = BEFORE.continued("another")
    assert (again.remaining, again.base, again.planned, again.final) == (None, 0, 0, None)
    assert (again.baseline, again.boot) == (BEFORE.baseline, "this"), "and still do if the start fails"
