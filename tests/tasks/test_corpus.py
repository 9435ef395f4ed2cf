"""The parser of job specs on every input that a coverage-guided fuzzer kept.

``corpus/specs.json`` has the inputs that atheris (libFuzzer) kept of fourteen million; ``check`` failed with none of
them. To search for more, with atheris installed and CORPUS a directory with the texts as files:

    python -c '
    import sys, atheris
    parsers = ["ktaskfs.tasks.spec", "ktaskfs.operations.base.parameters", "ktaskfs.units"]
    with atheris.instrument_imports(include=parsers):
        from tests.tasks.test_corpus import check
    atheris.Setup(sys.argv, check)
    atheris.Fuzz()' -max_len=300 CORPUS
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from ktaskfs.errors import SpecError
from ktaskfs.operations.base.parameters import format_parameters
from ktaskfs.operations.base.registry import find_operations
from ktaskfs.tasks.spec import Spec, parse_spec, split_specs

OPERATIONS = find_operations()
CORPUS = Path(__file__).with_name("corpus") / "specs.json"


def check(data: bytes) -> None:
    """An input, or each spec of it, is refused with a position inside of it, or can be written in the other form."""
    text = os.fsdecode(data)
    for part in (text, *parts(text)):
        try:
            spec = parse_spec(part, OPERATIONS)
        except SpecError as error:
            check_place(error, part)
            continue
        check_canonical(spec)


def parts(text: str) -> list[str]:
    """The parsed part of a write to ``tasks/control``."""
    try:
        found = list(split_specs(text))
    except SpecError as error:
        check_place(error, text)
        return []
    place = 0
    for each in found:
        place = text.index(each, place) + len(each)
    return found


def check_canonical(spec: Spec) -> None:
    """The canonical text in the other form means the same."""
    again = {"op": spec.operation.name, **format_parameters(spec.parameters)}
    assert parse_spec(json.dumps(again), OPERATIONS) == spec


def check_place(error: SpecError, text: str) -> None:
    """``info/error_log`` must be able to put a caret at the position of the error."""
    assert error.line in text.split("\n")
    assert 0 <= error.start <= error.end <= max(len(error.line), 1)


def test_every_input_of_the_corpus() -> None:
    texts = json.loads(CORPUS.read_text())
    assert len(texts) > 50
    for text in texts:
        check(text.encode())
