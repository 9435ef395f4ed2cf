"""Makes writes to ``tasks/control``: valid specs, nearly valid ones, mutations of both, and bytes of any kind."""

from __future__ import annotations

import json
import os
import random
from typing import TYPE_CHECKING, Any, Final, TypeVar

from tests.fuzz.checks import KINDS, OPERATIONS, escaped
from tests.fuzz.values import ANY, GOOD, KEYS, LONG, NAMES, POOLS, TARGETS, TOKENS, WRONG_KEYS

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ktaskfs.operations.base.parameters import Kind, Parameter

T = TypeVar("T")

LONGEST: Final = 1 << 16
"""Bytes of a command; a longer one is refused before it is parsed."""


class Maker:
    """One stream of writes; the same ``seed`` makes the same ones."""

    def __init__(self, seed: str) -> None:
        self._random = random.Random(seed)
        self._last = b"fallocate path=/dev/hugepages/vm0 length=64G"

    def _pick(self, choices: Sequence[T]) -> T:
        return self._random.choice(choices)

    def write(self) -> bytes:
        """The next write."""
        chance = self._random.random()
        if chance < 0.4:
            made = self.spec().encode("utf-8", "surrogateescape")
            self._last = made
        elif chance < 0.9:
            made = self._mutated(self._last if chance < 0.7 else self.spec().encode("utf-8", "surrogateescape"))
            if chance < 0.5:  # mutations pile up
                self._last = made
        elif chance < 0.94:
            made = self._several().encode("utf-8", "surrogateescape")
        elif chance < 0.999:
            made = self._random.randbytes(self._random.randrange(40))
        else:
            made = self._long()
        return made[:LONGEST]

    def value(self) -> tuple[Kind[Any], str]:
        """A write to the file of a parameter: its kind, and the text."""
        kind = self._pick(KINDS)
        text = self._value(kind)
        if self._random.random() < 0.4:
            text = os.fsdecode(self._mutated(text.encode("utf-8", "surrogateescape")))
        return kind, text

    def _value(self, kind: Kind[Any]) -> str:
        chance = self._random.random()
        if chance < 0.03:
            return self._pick(LONG)
        if chance < 0.1:
            return self._pick(ANY)
        if chance < 0.13 and kind.name in ("size", "size|max", "number", "pid"):
            return str(self._random.getrandbits(self._random.randrange(1, 70)))
        return self._pick(POOLS.get(kind.name) or kind.name.split("|"))

    def _pairs(self) -> tuple[str, list[tuple[str, str]]]:
        """An operation, and mostly parameters of its own, mostly with values that suit it."""
        name = self._pick(NAMES)
        declared = OPERATIONS[name].declared if name in OPERATIONS else next(iter(OPERATIONS.values())).declared
        chosen: list[Parameter] = [each for each in declared if each.required]
        chosen += self._random.sample(declared, self._random.choice((0, 1, 2, 3, 3, 4, 6)))
        if self._random.random() < 0.95 and not any(each.name in TARGETS for each in chosen):
            chosen.append(self._pick([each for each in declared if each.name in TARGETS] or declared))
        pairs = {each.name: self._value(each.kind) for each in chosen}
        if self._random.random() < 0.7:  # or hardly one would be accepted
            pairs = {each.name: self._good(each, pairs[each.name]) for each in chosen}
        if self._random.random() < 0.1:
            pairs[self._pick(KEYS if self._random.random() < 0.5 else WRONG_KEYS)] = self._pick(ANY)
        listed = list(pairs.items())
        self._random.shuffle(listed)
        if listed and self._random.random() < 0.04:
            listed.append(self._pick(listed))
        return name, listed

    def _good(self, parameter: Parameter, text: str) -> str:
        """``text`` if the parameter takes it, else a value that it takes."""
        try:
            parameter.kind.parse(text)
        except Exception:  # what it may raise is not the question here
            return GOOD.get(parameter.kind.name) or parameter.kind.name.split("|")[0]
        return text if parameter.name != "name" else "vm0"

    def spec(self) -> str:
        """One spec, which is more or less valid, in either form."""
        name, pairs = self._pairs()
        return self._as_object(name, pairs) if self._random.random() < 0.4 else self._as_words(name, pairs)

    def _as_words(self, name: str, pairs: list[tuple[str, str]]) -> str:
        gap = self._pick((" ", " ", " ", "  ", "\t", " \r"))
        return gap.join([self._quoted(name), *[self._quoted(f"{key}={value}") for key, value in pairs]])

    def _quoted(self, text: str) -> str:
        chance = self._random.random()
        if chance < 0.5:
            return escaped(text)
        if chance < 0.65:
            return "'" + text.replace("'", "'\\''") + "'"
        if chance < 0.8:
            return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
        if chance < 0.9:
            key, equals, value = text.partition("=")
            return f'{escaped(key)}{equals}"{value}"'
        return text if chance < 0.97 else "".join(f"\\{each}" for each in text)

    def _as_object(self, name: str, pairs: list[tuple[str, str]]) -> str:
        members = [("op", name), *pairs]
        if self._random.random() < 0.3:
            self._random.shuffle(members)
        told = [(key, self._json_value(value)) for key, value in members]
        ascii_only, indent = self._random.random() < 0.5, self._pick((None, None, None, 1, "\t"))
        if self._random.random() < 0.9:
            return json.dumps(dict(told), ensure_ascii=ascii_only, indent=indent)
        inner = (f"{json.dumps(key)}{self._pick((':', ' : '))}{json.dumps(value)}" for key, value in told)
        return "{" + self._pick((",", ", ", "\n,", " ")).join(inner) + "}"  # a key may come twice

    def _json_value(self, text: str) -> Any:
        chance = self._random.random()
        if chance < 0.3 and text.isdecimal() and text.isascii():
            return int(text)
        if chance < 0.4 and text in ("0", "1"):
            return text == "1"
        if chance < 0.03:
            return self._pick((None, 1.5, 1e300, [], [0, 1], [1, True], {"a": 1}, -1, 10**30, [[1]], ["a"], True))
        return text

    def _several(self) -> str:
        count = self._random.randrange(2, 5)
        if self._random.random() < 0.3:
            return (
                "["
                + self._pick((",", ", ", ",\n", " ")).join(self._as_object(*self._pairs()) for _ in range(count))
                + "]"
            )
        return self._pick(("\n", "\n\n", "\r\n", " \n\t")).join(self.spec() for _ in range(count))

    def _mutated(self, data: bytes) -> bytes:
        for _ in range(self._pick((1, 1, 1, 2, 3, 6))):
            data = self._pick(MUTATIONS)(self, data)
        return data[:LONGEST]

    def _span(self, data: bytes) -> tuple[int, int]:
        start = self._random.randint(0, len(data))
        return start, min(len(data), start + self._pick((0, 1, 1, 2, 4, 12)))

    def _insert(self, data: bytes) -> bytes:
        at, _ = self._span(data)
        return data[:at] + self._pick(TOKENS) + data[at:]

    def _replace(self, data: bytes) -> bytes:
        start, end = self._span(data)
        return data[:start] + self._pick(TOKENS) + data[end:]

    def _remove(self, data: bytes) -> bytes:
        start, end = self._span(data)
        return data[:start] + data[end:]

    def _repeat(self, data: bytes) -> bytes:
        start, end = self._span(data)
        return data[:end] + data[start:end] * self._pick((1, 1, 2, 30)) + data[end:]

    def _flip(self, data: bytes) -> bytes:
        if not data:
            return data
        at = self._random.randrange(len(data))
        return data[:at] + bytes([data[at] ^ 1 << self._random.randrange(8)]) + data[at + 1 :]

    def _splice(self, data: bytes) -> bytes:
        return data[: self._span(data)[0]] + self._last[self._span(self._last)[0] :]

    def _cut(self, data: bytes) -> bytes:
        return data[: self._span(data)[0]]

    def _long(self) -> bytes:
        """As long as a command may be: one token again and again, perhaps within a spec."""
        unit = self._pick(
            (*TOKENS, b"x=1 ", b"0-1023,", b'{"op":', b'"a":1,', b"\\ ", b"a", b"[0,", b'{"op":"clear"},')
        )
        before = self._pick(
            (b"", b"clear path=", b"clear ", b"clear 'path=", b'{"op":"clear","path":"', b'{"op":', b"[")
        )
        return before + unit * ((LONGEST - len(before)) // len(unit)) + self._pick((b"", b"'", b'"}', b"}", b"]"))


MUTATIONS: Final[tuple[Callable[[Maker, bytes], bytes], ...]] = (
    Maker._insert,
    Maker._replace,
    Maker._replace,
    Maker._remove,
    Maker._repeat,
    Maker._flip,
    Maker._splice,
    Maker._cut,
)
