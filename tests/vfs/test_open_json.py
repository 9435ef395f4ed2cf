"""JSON of a command: where it ends, whatever the pieces are."""

from __future__ import annotations

import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ktaskfs.vfs import COMMAND_MAX
from ktaskfs.vfs.open_json import OpenJson, begins_json

VALUES = st.one_of(st.text(max_size=20), st.integers(), st.booleans(), st.none(), st.lists(st.integers(), max_size=3))
OBJECTS = st.dictionaries(st.text(max_size=8), VALUES, max_size=4)


@given(st.one_of(OBJECTS, st.lists(OBJECTS, max_size=3)), st.booleans(), st.sampled_from([None, 0, 1, 3]), st.data())
def test_it_goes_on_until_its_last_byte(
    value: object, ascii_only: bool, indent: int | None, data: st.DataObject
) -> None:
    text = json.dumps(value, ensure_ascii=ascii_only, indent=indent).encode()
    cuts = sorted(data.draw(st.sets(st.integers(1, len(text) - 1), max_size=8)))
    found = OpenJson()
    for start, end in zip([0, *cuts], cuts, strict=False):
        assert found.goes_on(text[start:end])
    assert not found.goes_on(text[cuts[-1] if cuts else 0 :])


@pytest.mark.parametrize(
    ("writes", "goes_on"),
    [
        ([b'{"op": "x"\n'], True),
        ([b"[\n", b'{"op": "x"},\n'], True),
        ([b'{"path": "}'], True),
        ([b'{"path": "\\', b'"}'], True),
        ([b'{"path": "\\', b'\\"}'], False),
        ([b'{"queue": tru', b"e"], True),
        ([b'{"op": "x"}\n{\n'], True),
        ([b"[]"], False),
        ([b'{"path": "x}\n'], False),  # a string has no line break
        ([b'{"op": "x"\n', b"cancel\n"], False),
        ([b'{"op": "x"\n', b" fallocate path=/x\n"], False),
        ([b'{"op": "x"\n', b'{"op": "y"}\n'], False),
        ([b'{"op": "x"\n', b"cancel\n", b"}{\n"], False),
        ([b"[[[\n"], False),
        ([b"{}}\n"], False),
        ([b'{"op": "x"}\nfallocate path=/{\n'], False),
    ],
)
def test_what_goes_on(writes: list[bytes], goes_on: bool) -> None:
    found = OpenJson()
    assert [found.goes_on(each) for each in writes][-1] == goes_on


@pytest.mark.parametrize(
    "text",
    [
        b'{"' + b'\\"' * 32760,
        b'"' * COMMAND_MAX,
        b"[{}," * 16384,
        b'{"a":1,' * 9362,
        b"\\" * COMMAND_MAX,
        b"\n" * COMMAND_MAX,
    ],
)
@pytest.mark.parametrize("size", [1, COMMAND_MAX])
def test_a_write_costs_little(text: bytes, size: int) -> None:
    """Whole, and byte by byte: a scan of all that came before would take minutes."""
    found, start = OpenJson(), time.thread_time()
    for at in range(0, len(text), size):
        found.goes_on(text[at : at + size])
    assert time.thread_time() - start < (2 if size == 1 else 0.1)


@pytest.mark.parametrize(
    ("text", "json"), [(b" \n{", True), (b"[", True), (b"cancel", False), (b"", False), (b'"', False)]
)
def test_what_begins_as_json(text: bytes, json: bool) -> None:
    assert begins_json(text) == json
