"""Declared parameters: their texts in both directions, and refused values."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ktaskfs.errors import InvalidValue
from ktaskfs.operations.base import parameters as kinds
from ktaskfs.operations.base.parameters import (
    Kind,
    choice,
    format_parameters,
    parameter,
    parse_parameters,
)
from ktaskfs.operations.base.registry import find_operations
from ktaskfs.operations.ranges._range import RangeParameters
from ktaskfs.units import SIZE_MAX

WORDS = choice("fast", "small")
KINDS = [kinds.SIZE, kinds.LENGTH, kinds.COUNT, kinds.FLAG, kinds.OCTAL, kinds.PATH, kinds.WORD, kinds.NODES]
KINDS += [kinds.NICE, kinds.THREADS, kinds.RATE, WORDS]
TEXTS = st.one_of(
    st.text(),
    st.integers(-1, 2**64).map(str),
    st.sampled_from(["max", "0", "1", "0777", "fast", "1-3,2", "64G", "0x10", "19", "1000"]),
)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
@given(text=TEXTS)
def test_the_canonical_text_means_the_same(kind: Kind[Any], text: str) -> None:
    value = _attempt(kind, text)
    if isinstance(value, InvalidValue):
        assert value.message.isprintable()
        assert len(value.message) < 600
    else:
        canonical = kind.format(value)
        assert kind.parse(canonical) == value
        assert kind.format(kind.parse(canonical)) == canonical


def _attempt(kind: Kind[Any], text: str) -> Any:
    try:
        return kind.parse(text)
    except InvalidValue as error:
        return error


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        (kinds.LENGTH, "0"),
        (kinds.FLAG, "2"),
        (kinds.FLAG, "yes"),
        (kinds.FLAG, ""),
        (kinds.OCTAL, "8"),
        (kinds.OCTAL, "1000"),
        (kinds.OCTAL, "0o600"),
        (kinds.OCTAL, "000600"),
        (kinds.PATH, ""),
        (kinds.PATH, "a\0b"),
        (kinds.PATH, "\ud800"),
        (kinds.NODES, "1024"),
        (kinds.NICE, "20"),
        (kinds.NICE, "-1"),
        (kinds.THREADS, "0"),
        (kinds.THREADS, "2147483648"),
        (kinds.THREADS, "Max"),
        (kinds.RATE, "0"),
        (WORDS, "Fast"),
    ],
)
def test_what_a_kind_refuses(kind: Kind[Any], text: str) -> None:
    with pytest.raises(InvalidValue):
        kind.parse(text)


class Sample(RangeParameters):
    words: str = parameter(WORDS, "how", default="fast")
    source: str = parameter(kinds.PATH, "from where")


def test_a_declaration_is_read_back_in_order() -> None:
    declared = Sample.declared
    assert [each.name for each in declared] == (
        ["name", "max_threads", "nice", "nodes", "chunk", "rate_max", "undo", "plan", "queue", "replace"]
        + ["path", "offset", "length", "words", "source"]
    )
    assert [each.name for each in declared if each.required] == ["path", "source"]
    texts = {each.name: each.default_text() for each in declared}
    assert (texts["max_threads"], texts["rate_max"], texts["nice"]) == ("max", "max", "-")
    assert (texts["undo"], texts["offset"], texts["length"], texts["words"]) == ("0", "0", "-", "fast")


def test_a_value_is_like_that_of_a_frozen_dataclass() -> None:
    value: Any = Sample(source="c", path="a")
    same = Sample(path="a", source="c")._replace(offset=0)
    assert (value, hash(value), repr(value)) == (same, hash(same), repr(same))
    assert value not in (same._replace(offset=1), RangeParameters(path="a"))
    with pytest.raises(AttributeError, match="path of Sample is frozen"):
        value.path = "b"
    with pytest.raises(AttributeError, match="path of Sample is frozen"):
        del value.path


@pytest.mark.parametrize("values", [{"path": "a"}, {"path": "a", "source": "c", "colour": "red"}, {}])
def test_a_value_of_other_names_is_not_made(values: Any) -> None:
    with pytest.raises(TypeError, match="not the parameters of Sample"):
        Sample(**values)


def test_the_same_comes_back_from_the_texts() -> None:
    texts = {"path": "/a b", "source": "c", "length": "1M", "nodes": "0-1,3", "undo": "1", "max_threads": "3"}
    values = parse_parameters(Sample, texts)
    assert (values.length, values.nodes, values.undo, values.max_threads) == (1 << 20, (0, 1, 3), True, 3)
    assert parse_parameters(Sample, format_parameters(values)) == values


def test_no_limit_is_not_kept_as_a_text() -> None:
    values = parse_parameters(Sample, {"path": "a", "source": "b", "max_threads": "max", "rate_max": "max"})
    assert {"max_threads", "rate_max"}.isdisjoint(format_parameters(values))


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ({"path": "a"}, "parameter source is missing"),
        ({"source": "a"}, "parameter path is missing"),
        ({"path": "a", "source": "b", "colour": "red"}, "unknown parameter 'colour'"),
        ({"path": "a", "source": "b", "\n": "red"}, r"unknown parameter '\\n'"),
        ({"path": "a", "source": "b", "offset": str(SIZE_MAX), "length": "1"}, "past the largest file offset"),
        ({"path": "a", "source": "b", "words": "slow"}, "'slow' is not one of fast, small"),
    ],
)
def test_what_cannot_be_built(texts: dict[str, str], message: str) -> None:
    with pytest.raises(InvalidValue, match=message):
        parse_parameters(Sample, texts)


def test_the_largest_file_offset_can_be_reached() -> None:
    texts = {"path": "a", "source": "b", "offset": str(SIZE_MAX - 1), "length": "1"}
    assert parse_parameters(Sample, texts).offset == SIZE_MAX - 1


def test_every_operation_declares_what_can_be_shown() -> None:
    for name, operation in find_operations().items():
        assert operation.name == name
        for each in operation.declared:
            assert each.help
            assert each.help.isprintable()
            assert each.default_text()
            if each.default is not None:
                assert each.kind.parse(each.default_text()) == each.default
