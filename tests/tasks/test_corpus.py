"""The parser of job specs on every input that a coverage-guided fuzzer kept.

``corpus/specs.json`` has the inputs that atheris (libFuzzer) kept of fourteen million; ``check`` failed with none of
them. To search for more, with atheris installed and CORPUS a directory with the texts as files:

    python -c '
    import sys, atheris
    parsers = ["ktaskfs.tasks.spec", "ktaskfs.operations.base.parameters", "ktaskfs.units"]
    with atheris.instrument_imports(include=parsers):
        from tests.fuzz.checks import check
    atheris.Setup(sys.argv, check)
    atheris.Fuzz()' -max_len=300 CORPUS
"""

from __future__ import annotations

import json
from pathlib import Path

from tests.fuzz.checks import check

CORPUS = Path(__file__).with_name("corpus") / "specs.json"


def test_every_input_of_the_corpus() -> None:
    texts = json.loads(CORPUS.read_text())
    assert len(texts) > 50
    for text in texts:
        check(text.encode())
