"""Declarations of parameters: one field is parser, default, help text and file at once.

An operation's parameters are a subclass of TaskParameters whose fields are made by ``parameter``. The spec parser,
``operations/NAME/parameters``, the task directory's files and the worker use this one declaration.
"""

from __future__ import annotations

import errno
import os
from typing import (
    TYPE_CHECKING,
    Any,
    ClassVar,
    Final,
    Generic,
    NamedTuple,
    NoReturn,
    Self,
    TypeVar,
    dataclass_transform,
)

from ktaskfs.errors import InvalidValue
from ktaskfs.units import format_cpulist, format_size, parse_cpulist, parse_int, parse_size, shown

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

T = TypeVar("T")

MAX: Final = "max"
"""The word for "no limit", as in cgroup v2."""
ALL: Final = "all"
PATH_MAX: Final = 4096
"""Bytes of a path with its closing NUL (linux/limits.h)."""
WORD_MAX: Final = 255
CPULIST_MAX: Final = 4096
"""Characters of a list: enough to name all 1,024 nodes one by one."""


class Kind(NamedTuple, Generic[T]):
    """A type of value: how to parse its text (raises InvalidValue) and write it back.

    ``format(parse(text))`` is the canonical text; parsing that again gives an equal value. ``absent`` is the text
    of a parameter without a value and a default.
    """

    name: str
    parse: Callable[[str], T]
    format: Callable[[T], str]
    absent: str = "-"


class Parameter(NamedTuple):
    """One declared parameter, as the spec parser and the mount's files see it.

    defaults:  canonical texts of the possible defaults, if the target decides; ``default`` is then None.
    is_target: it names the target of the operation, for the log and for messages.
    """

    name: str
    kind: Kind[Any]
    default: Any
    help: str
    required: bool
    defaults: tuple[str, ...] = ()
    is_target: bool = False

    def default_text(self) -> str:
        """The default as canonical text; the kind's ``absent`` without one, all if the target decides."""
        if self.defaults:
            return "|".join(self.defaults)
        return self.kind.absent if self.default is None else self.kind.format(self.default)


def target_text(declared: Iterable[Parameter], texts: Mapping[str, str]) -> str:
    """The target of a task, for people: ``/dev/hugepages/vm1``, ``pid=7``; empty if no parameter in ``texts`` names it.

    If several do, the first one counts.
    """
    first = next((each for each in declared if each.is_target and each.name in texts), None)
    if first is None:
        return ""
    return texts[first.name] if first.kind is PATH else f"{first.name}={texts[first.name]}"


_REQUIRED: Final = object()


def parameter(kind: Kind[T], help: str, *, default: Any = _REQUIRED, is_target: bool = False) -> Any:
    """A field of a declaration; without ``default=`` every spec must give it.

    A default of None means "not given"; ``help`` explains the effect.
    """
    required = default is _REQUIRED
    return Parameter("", kind, None if required else default, help, required, is_target=is_target)


@dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(parameter,))
class Declaration:
    """The fields of a subclass are parameters. Its values are like those of a frozen dataclass, given by name.

    Python would compile the methods of each dataclass: 19 ms of the start of a mount for all operations.
    """

    declared: ClassVar[tuple[Parameter, ...]]
    """The parameters with those of the bases, in order of declaration."""

    def __init_subclass__(cls) -> None:
        found = {
            name: each._replace(name=name)
            for base in reversed(cls.__mro__)
            for name, each in vars(base).items()
            if isinstance(each, Parameter)
        }
        cls.declared = tuple(found.values())

    def __init__(self, **values: Any) -> None:
        """Raises TypeError for a name that is not declared, and if a required one is missing."""
        all_values = {each.name: each.default for each in self.declared} | values
        required = {each.name for each in self.declared if each.required}
        if len(all_values) > len(self.declared) or not required <= values.keys():
            raise TypeError(f"these are not the parameters of {type(self).__name__}: {', '.join(values)}")
        vars(self).update(all_values)

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(f"{name} of {type(self).__name__} is frozen")

    def __delattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"{name} of {type(self).__name__} is frozen")

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and vars(other) == vars(self)

    def __hash__(self) -> int:
        return hash(tuple(vars(self).values()))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in vars(self).items())})"

    def _replace(self, **changes: Any) -> Self:
        """A copy with other values, as by the method of a NamedTuple."""
        return type(self)(**vars(self) | changes)


def _parse_flag(text: str) -> bool:
    if text not in ("0", "1"):
        raise InvalidValue(f"{shown(text)} is neither 0 nor 1")
    return text == "1"


def _parse_octal(text: str) -> int:
    if not text or len(text) > 5 or text.strip("01234567"):
        raise InvalidValue(f"{shown(text)} is not an octal file mode (such as 0600)")
    value = int(text, 8)
    if value > 0o777:
        raise InvalidValue(f"{shown(text)} is not a file mode from 0 to 0777")
    return value


def _parse_path(text: str) -> str:
    if not text:
        raise InvalidValue("the path is empty")
    if "\0" in text:
        raise InvalidValue("the path has a NUL byte")
    try:
        path = os.fsencode(text)
    except UnicodeEncodeError:  # possible in JSON, but not in a file name
        raise InvalidValue("the path has half a surrogate pair") from None
    if len(path) >= PATH_MAX:
        raise InvalidValue(f"the path has {len(path)} bytes; the limit is {PATH_MAX - 1}", errno=errno.ENAMETOOLONG)
    return os.fsdecode(path)  # JSON can write the bytes of a character one by one


def _parse_word(text: str) -> str:
    if len(text) > WORD_MAX:
        raise InvalidValue(f"{shown(text)} has {len(text)} characters; the limit is {WORD_MAX}")
    return text


def _parse_nodes(text: str) -> tuple[int, ...]:
    if len(text) > CPULIST_MAX:
        raise InvalidValue(f"the list has {len(text)} characters; the limit is {CPULIST_MAX}")
    return parse_cpulist(text, most=1023)


def _parse_address(text: str) -> int | None:
    return None if text == ALL else parse_int(text, most=2**64 - 1)


def _format_address(value: int | None) -> str:
    return ALL if value is None else f"{value:#x}"


def _limit(parse: Callable[[str], int]) -> Callable[[str], int | None]:
    return lambda text: None if text == MAX else parse(text)


def _format_limit(value: int | None) -> str:
    return MAX if value is None else str(value)


SIZE: Final[Kind[int]] = Kind("size", parse_size, format_size)
LENGTH: Final[Kind[int]] = Kind("size", lambda text: parse_size(text, least=1), format_size)
COUNT: Final[Kind[int]] = Kind("number", parse_int, str)
FLAG: Final[Kind[bool]] = Kind("0/1", _parse_flag, lambda value: str(int(value)))
OCTAL: Final[Kind[int]] = Kind("mode", _parse_octal, lambda value: f"{value:04o}")
PATH: Final[Kind[str]] = Kind("path", _parse_path, str)
"""The path of the task's target: a resume finds it again."""
FILE: Final[Kind[str]] = Kind("path", _parse_path, str)
"""Another file that the task reads or makes."""
WORD: Final[Kind[str]] = Kind("word", _parse_word, str)
NODES: Final[Kind[tuple[int, ...]]] = Kind("cpulist", _parse_nodes, format_cpulist)
NICE: Final[Kind[int]] = Kind("number", lambda text: parse_int(text, most=19), str)
THREADS: Final[Kind[int | None]] = Kind(
    "number|max", _limit(lambda text: parse_int(text, least=1, most=2**31 - 1)), _format_limit, absent=MAX
)
RATE: Final[Kind[int | None]] = Kind(
    "size|max",
    _limit(lambda text: parse_size(text, least=1)),
    lambda value: MAX if value is None else format_size(value),
    absent=MAX,
)


PID: Final[Kind[int]] = Kind("pid", lambda text: parse_int(text, least=1, most=2**31 - 1), str)
ADDRESS: Final[Kind[int | None]] = Kind("address|all", _parse_address, _format_address, absent=ALL)


def choice(*words: str) -> Kind[str]:
    """A kind that takes one of ``words``."""

    def parse(text: str) -> str:
        if text not in words:
            raise InvalidValue(f"{shown(text)} is not one of {', '.join(words)}")
        return text

    return Kind("|".join(words), parse, str)


class TaskParameters(Declaration):
    """The parameters of every operation."""

    name: str | None = parameter(WORD, "name of the task (default OPERATION-N)", default=None)
    max_threads: int | None = parameter(THREADS, "maximum of threads (max: only tunables limit them)", default=None)
    nice: int | None = parameter(NICE, "nice value of helper threads (default: debug/ktask_nice)", default=None)
    nodes: tuple[int, ...] | None = parameter(
        NODES, "NUMA nodes to use (default: any, or where pages are)", default=None
    )
    chunk: int | None = parameter(LENGTH, "smallest chunk size (default: the operation's own)", default=None)
    rate_max: int | None = parameter(RATE, "maximum units per second, over all threads", default=None)
    undo: bool = parameter(FLAG, "undo this run if it fails or is cancelled", default=False)
    plan: bool = parameter(FLAG, "only check, and write into result what would be done", default=False)
    queue: bool = parameter(FLAG, "wait instead of EAGAIN at your limit of unfinished tasks", default=False)
    replace: bool = parameter(FLAG, "remove your ended task of the same name at the start", default=False)

    def check(self) -> None:
        """Raises InvalidValue for values that contradict each other."""


P = TypeVar("P", bound=TaskParameters)


def parse_parameters(declaration: type[P], texts: Mapping[str, str]) -> P:
    """Build ``declaration`` from canonical or user-written texts; raises InvalidValue.

    Unknown names and missing required ones are InvalidValue, too.
    """
    declared = {each.name: each for each in declaration.declared}
    unknown = texts.keys() - declared.keys()
    if unknown:
        raise InvalidValue(f"unknown parameter {shown(min(unknown))}")
    return build_parameters(declaration, {name: declared[name].kind.parse(text) for name, text in texts.items()})


def build_parameters(declaration: type[P], values: Mapping[str, Any]) -> P:
    """Build ``declaration`` from parsed values of declared names.

    Raises InvalidValue for a missing required one, and for values that contradict each other.
    """
    missing = [each.name for each in declaration.declared if each.required and each.name not in values]
    if missing:
        raise InvalidValue(f"parameter {missing[0]} is missing")
    parameters = declaration(**values)
    parameters.check()
    return parameters


def format_parameters(values: Any) -> dict[str, str]:
    """The canonical texts of every parameter that differs from None, for a record or a message."""
    return {
        each.name: each.kind.format(value)
        for each in values.declared
        if (value := getattr(values, each.name)) is not None
    }
