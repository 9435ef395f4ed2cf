"""The language of the control files."""

from __future__ import annotations

import json
import os
import shlex
import string
import sys
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ktaskfs.errors import InvalidValue, SpecError
from ktaskfs.operations.base.operation import Operation
from ktaskfs.operations.ranges._range import RangeParameters
from ktaskfs.tasks.spec import Spec, check_name, parse_spec, split_specs
from ktaskfs.tasks.words import split_words
from ktaskfs.units import BYTES

if TYPE_CHECKING:
    from ktaskfs.operations.base.plan import Plan, Preparation

LINES = st.text(st.sampled_from("ab =\"'\\ \t\n\r#{}:,\u00e9\u00a0\x1c"), max_size=30)
BLANKS = " \t\r\n"


class Nothing(RangeParameters):
    """No additional parameter."""


class Wipe(Operation[Nothing]):
    name = "wipe"
    description = "Does nothing."
    units = BYTES
    parameters = Nothing

    def prepare(self, preparation: Preparation[Nothing]) -> Plan:
        raise AssertionError("a spec is read without preparing anything")


OPERATIONS: MappingProxyType[str, Operation[Any]] = MappingProxyType({"wipe": Wipe()})


def parse(line: str) -> Spec:
    return parse_spec(line, OPERATIONS)


def refused(line: str) -> SpecError:
    """The refusal of ``line``, whose span must lie in it."""
    with pytest.raises(SpecError) as refusal:
        parse(line)
    error = refusal.value
    assert error.line in line.split("\n")
    assert 0 <= error.start < max(error.end, 1)
    assert error.end <= max(len(error.line), 1)
    assert error.message.isprintable()
    assert len(error.message) < 1000
    return error


@given(LINES)
@example("a\\ ")
@example("a\\\\ b")
@example("a\\\n b")
@example("'' \"\"")
def test_words_are_those_of_shlex_and_each_knows_its_place(line: str) -> None:
    try:
        expected = shlex.split(line, comments=False)
    except ValueError:
        with pytest.raises(SpecError) as raised:
            split_words(line)
        assert 0 <= raised.value.start < raised.value.end == len(line)
        return
    words = split_words(line)
    assert [word.text for word in words] == expected
    edge = 0
    for word in words:
        assert line[edge : word.start].strip(BLANKS) == ""
        assert word.start < word.end
        assert shlex.split(line[word.start : word.end]) == [word.text]
        assert line[word.start] not in BLANKS
        edge = word.end
    assert line[edge:].strip(BLANKS) == ""


@given(st.text(max_size=60) | LINES | LINES.map(lambda text: "{" + text) | LINES.map(lambda text: "wipe " + text))
def test_any_text_is_a_spec_or_a_spec_error(line: str) -> None:
    try:
        parse(line)
    except SpecError:
        refused(line)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)


@given(st.dictionaries(st.sampled_from(["op", "path", "length", "x"]) | st.text(max_size=3), JSON, max_size=4))
def test_any_json_object_is_a_spec_or_a_spec_error(value: dict[str, Any]) -> None:
    for line in (json.dumps(value), json.dumps(value, ensure_ascii=False, indent=1)):
        try:
            parse(line)
        except SpecError:
            refused(line)


@given(
    st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=20),
    st.integers(0, 2**40),
    st.integers(1, 2**40),
    st.booleans(),
)
def test_both_forms_say_the_same(path: str, offset: int, length: int, undo: bool) -> None:
    quoted = shlex.quote(path)
    words = parse(f"wipe path={quoted} offset={offset} length={length} undo={int(undo)}")
    value = {"op": "wipe", "path": path, "offset": offset, "length": str(length), "undo": undo}
    assert words == parse(json.dumps(value)) == parse(f"\t {json.dumps(value, ensure_ascii=False)}\r")
    parameters = words.parameters
    assert isinstance(parameters, Nothing)
    assert (parameters.path, parameters.offset, parameters.length) == (path, offset, length)


def test_a_write_has_lines_objects_and_lists_of_objects() -> None:
    objects = [{"op": "wipe", "path": f"/{number}", "nodes": [0, 1]} for number in range(4)]
    pretty = [json.dumps(each, indent=2) for each in objects]
    lines = "wipe path=a\n\n \t\r\nwipe path='{b'\r\n"
    for text, count in (
        (lines, 2),
        (pretty[0], 1),
        ("\n\n".join(pretty) + "\n", 4),
        (json.dumps(objects), 4),
        (json.dumps(objects, indent=1), 4),
        (f"{lines}{pretty[1]}\n{lines}[\n{pretty[2]}\n,{pretty[3]} ]\n{json.dumps(objects[0])}", 8),
        ("[]", 0),
        (" \n\t", 0),
    ):
        specs = list(split_specs(text))
        assert len(specs) == count
        for each in specs:
            assert parse(each).parameters == parse(" ".join(each.split("\n"))).parameters


@pytest.mark.parametrize(
    ("text", "line", "token", "message"),
    [
        ('{"op": "wipe",\n "path": "a",\n "offset": "7Q"\n}', ' "offset": "7Q"', '"offset": "7Q"', "'7Q' is not"),
        ('wipe path=a\n[{"op": "wipe"},\n {"op": "wipe",\n  "x": 1}]', '{"op": "wipe"}', '"op": "wipe"', "path is"),
        ('[{"op": "wipe", "path": "a"},\n {"op": "wipe",\n  "x": 1}]', '  "x": 1}', '"x": 1', "no parameter"),
        ('{"op": "wipe",\n "path": {"a":\n 1}}', ' "path": {"a":', '"path": {"a":', "a value is text"),
        ('{\n"path": "a"\n}', "{", "{", 'has no "op"'),
        ('{"op": "wipe",\n "path": "a" x}', ' "path": "a" x}', "x", "not JSON: Expecting ',' delimiter"),
        ('{"op": "wipe"} wipe path=a', '{"op": "wipe"} wipe path=a', "w", "not JSON: Extra data"),
        ('[{"op": "wipe"}, 1]', '[{"op": "wipe"}, 1]', "1", "a list of specs has objects"),
        ('[{"op": "wipe"},]', '[{"op": "wipe"},]', "]", "a list of specs has objects"),
        ('[{"op": "wipe"}\n{"op": "wipe"}]', '{"op": "wipe"}]', "{", "expecting , or ]"),
        ('[{"op": "wipe"},\n', '[{"op": "wipe"},', ",", "the JSON ends early"),
        ("wipe 'a\nb'", "wipe 'a", "'a", "not closed"),
        ("[", "[", "[", "the JSON ends early"),
    ],
)
def test_an_error_in_several_lines_shows_the_line(text: str, line: str, token: str, message: str) -> None:
    def read() -> None:
        for each in list(split_specs(text)):
            parse(each)

    with pytest.raises(SpecError) as refusal:
        read()
    error = refusal.value
    assert message in error.message
    assert error.line == line
    assert error.line[error.start : error.end] == token


def test_a_path_is_bytes_in_either_form() -> None:
    raw = os.fsdecode(b"/caf\xe9 \xff")
    for line in (
        f"wipe path='{raw}'",
        json.dumps({"op": "wipe", "path": raw}),
        json.dumps({"op": "wipe", "path": raw}, ensure_ascii=False),
    ):
        parameters = parse(line).parameters
        assert isinstance(parameters, Nothing)
        assert os.fsencode(parameters.path) == b"/caf\xe9 \xff"
    single = parse(json.dumps({"op": "wipe", "path": "/caf\udcc3\udca9"})).parameters
    assert single == parse("wipe path=/café").parameters
    assert "ENAMETOOLONG" in str(refused("wipe path=/" + "é" * 2048).errname)


def test_nodes_may_be_a_list_of_numbers() -> None:
    assert parse('{"op": "wipe", "path": "a", "nodes": [0, 2, 1]}').parameters.nodes == (0, 1, 2)


@pytest.mark.parametrize(
    ("line", "token", "message"),
    [
        ("sweep path=a", "sweep", "unknown operation 'sweep'; there are wipe"),
        ("", "", "empty"),
        (" \t ", " \t ", "empty"),
        ("''", "''", "unknown operation ''"),
        ("# don't wipe a=b", "# don't wipe a=b", "a line that begins with # is no spec"),
        ("#", "#", "a line that begins with # is no spec"),
        ("wipe path=a  colour=red x=y", "colour=red", "no parameter 'colour'"),
        ("wipe path=a 'b c' d=e", "'b c'", "is not of the form key=value"),
        ("wipe path=a 'path=b'", "'path=b'", "'path' is given twice"),
        ("wipe path=a =b", "=b", "no parameter ''"),
        ("wipe 'path=", "'path=", "not closed"),
        ("wipe path=a\\", "path=a\\", "not closed"),
        ("wipe path=a length=7Q offset=0", "length=7Q", "length: '7Q' is not a size"),
        ("wipe path= ", "path=", "path: the path is empty"),
        ("wipe path=a name=a/b", "name=a/b", "name: 'a/b' is not a task name"),
        (f"wipe path=a name={'x' * 300}", f"name={'x' * 300}", "is not a task name: 1 to 128 of"),
        ("wipe", "wipe", "parameter path is missing"),
        ("wipe path=a offset=9223372036854775807 length=1", "wipe", "largest file offset"),
        ('{"op": "wipe", "path": "a", "path": "b"}', '"path": "b"', "'path' is given twice"),
        ('{"op": "wipe", "path": null}', '"path": null', "a value is text"),
        ('{"op": "wipe", "path": {"x": 1}}', '"path": {"x": 1}', "a value is text"),
        ('{"op": "wipe", "path": [1, true]}', '"path": [1, true]', "a value is text"),
        ('{"op": "wipe", "length": 1.5}', '"length": 1.5', "a value is text"),
        ('{"op": "wipe", "note": "\\"length\\": 1", "length": 0}', '"note": "\\"length\\": 1"', "no parameter 'note'"),
        ('{"op": "wipe", "path": "a", "length" : "7Q"}', '"length" : "7Q"', "'7Q' is not a size"),
        ('{"op": ["wipe"]}', '"op": ["wipe"]', "a value is text"),
        ('{"path": "a"}', '{"path": "a"}', 'has no "op"'),
        ("{}", "{}", 'has no "op"'),
        ('{"op": "wipe"', '"', "the JSON ends early"),
        ('{"op": "wipe",}', "," if sys.version_info >= (3, 13) else "}", "not JSON"),
        ('{"op": "wipe"} x', "x", "not JSON: Extra data"),
        ('{"op": NaN}', '{"op": NaN}', "not JSON of one flat object"),
        ('{"op": -Infinity}', '{"op": -Infinity}', "not JSON of one flat object"),
        ('{"op": "wipe", "path": "\\ud800"}', '"path": "\\ud800"', "surrogate"),
        ('{"op": "wipe", "path": "\\u0000"}', '"path": "\\u0000"', "NUL"),
        ('{"op": "\\ud800"}', '"op": "\\ud800"', "unknown operation"),
        ('{"op": "wipe", "\\ud800": 1}', '"\\ud800": 1', "no parameter"),
        ("wipe path=a \x1b[31m=1", "\x1b[31m=1", "no parameter"),
    ],
)
def test_the_error_points_at_the_token_that_is_wrong(line: str, token: str, message: str) -> None:
    error = refused(line)
    assert message in error.message
    assert line[error.start : error.end] == token


@pytest.mark.parametrize(
    "line",
    [
        "{" * 65536,
        '{"a":' + "[" * 65000,
        '{"op":' + "[" * 30000 + "]" * 30000 + "}",
        '{"op":' + "9" * 65000 + "}",
        "{" + ",".join(f'"k{number}":{number}' for number in range(5000)) + "}",
        "wipe " + "x=1 " * 16000,
        "wipe " + " " * 65000,
        "wipe path=" + "\\ " * 32000,
        "wipe path=a nodes=" + "0-1023," * 9000,
        "wipe 'path=" + "a" * 65000,
        "wipe name=" + "n" * 65000,
        "y" * 65536,
        "wipe " + "\x01" * 65000,
    ],
    ids=lambda line: line[:12].strip(),
)
def test_a_command_of_the_greatest_length_is_refused_or_read_like_any_other(line: str) -> None:
    try:
        parse(line)
    except SpecError:
        refused(line)


@given(st.text(max_size=10) | st.text(string.printable, max_size=140))
def test_a_name_is_one_path_component_that_a_shell_leaves_alone(name: str) -> None:
    try:
        check_name(name)
    except InvalidValue:
        return
    assert "/" not in name
    assert name not in (".", "..")
    assert name[0] not in "-.~=#"
    assert shlex.split(name) == [name]
    assert 0 < len(name) <= 128


@pytest.mark.parametrize("name", ["a\n", "a b", "", ".", "..", ".a", "-a", "a/b", "\u00e9", "a" * 129, "a\0"])
def test_what_is_no_name(name: str) -> None:
    with pytest.raises(InvalidValue, match="is not a task name") as refusal:
        check_name(name)
    assert refusal.value.message.isprintable()
