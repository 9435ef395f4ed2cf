"""One name for several operations: the target in a spec selects one (``survey path=FILE|DIRECTORY``)."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

from ktaskfs.errors import InvalidValue
from ktaskfs.operations.base.operation import Operation, SpecWord
from ktaskfs.operations.base.parameters import (
    Kind,
    Parameter,
    TaskParameters,
    parameter,
    parse_parameters,
)
from ktaskfs.units import shown

if TYPE_CHECKING:
    from collections.abc import Sequence


COMMON: frozenset[str] = frozenset(each.name for each in TaskParameters.declared)


class SharedWord(SpecWord):
    """Has the parameters of all ``meanings``. A spec selects the first meaning whose ``means`` accepts it, or else the
    general one.

    Each meaning has a ``target`` in words; only the general one does not override ``means``. All count the same units.
    Raises TypeError otherwise.
    """

    def __init__(self, meanings: Sequence[Operation[Any]]) -> None:
        general = [each for each in meanings if type(each).means is Operation.means]
        if len(general) != 1 or not all(each.target for each in meanings):
            modules = " and ".join(type(each).__module__ for each in meanings)
            raise TypeError(f"{modules} are all named {meanings[0].name}, and nothing says which of them a spec is for")
        self._general = general[0]
        self._particular = tuple(each for each in meanings if each is not self._general)
        self.name, self.units = self._general.name, self._general.units
        if any(each.units != self.units for each in meanings):
            raise TypeError(f"{self.name} counts in different units")
        others = (f"\nOf {each.target}: {each.description}" for each in self._particular)
        self.description = self._general.description + "".join(others)
        self.parameters = _union(self.meanings)

    @property
    def meanings(self) -> tuple[Operation[Any], ...]:
        return (self._general, *self._particular)

    def meant(self, parameters: TaskParameters) -> tuple[Operation[Any], Any]:
        operation = next((each for each in self._particular if each.means(parameters)), self._general)
        return operation, _as_own(operation, parameters)


def _union(meanings: Sequence[Operation[Any]]) -> type[TaskParameters]:
    """The parameters of all. A parameter that is optional for one meaning has a default: the common one, or none."""
    found: dict[str, list[tuple[Operation[Any], Parameter]]] = {}
    for operation in meanings:
        for each in operation.declared:
            if each.name not in COMMON:
                found.setdefault(each.name, []).append((operation, each))
    fields = {name: _merged(declared, len(meanings)) for name, declared in found.items()}

    def check(self: TaskParameters) -> None:
        """Unless some meaning accepts these values, raises the error of one that has all these parameters, or else of
        the general one."""
        given = {each.name for each in self.declared if getattr(self, each.name) != each.default}
        refusals = []
        for each in meanings:
            try:
                _as_own(each, self)
            except InvalidValue as error:
                refusals.append((not given <= {own.name for own in each.declared}, error))
            else:
                return
        raise min(refusals, key=lambda each: each[0])[1]

    name = f"{meanings[0].name.title()}Parameters"
    return type(name, (TaskParameters,), {"check": check, **fields})


def _merged(declared: Sequence[tuple[Operation[Any], Parameter]], meanings: int) -> Any:
    parameters = [each for _, each in declared]
    helps = {each.help for each in parameters}
    if len(declared) == meanings and len(helps) == 1:
        (text,) = helps
    else:
        text = "; ".join(f"{operation.target}: {each.help}" for operation, each in declared)
    kind = parameters[0].kind
    if any(each.kind is not kind for each in parameters):
        kind = _either([each.kind for each in parameters])
    is_target = any(each.is_target for each in parameters)
    if len(declared) == meanings and all(each.required for each in parameters):
        return parameter(kind, text, is_target=is_target)
    defaults = list(dict.fromkeys(each.default for each in parameters))
    if len(defaults) == 1:
        return parameter(kind, text, default=defaults[0], is_target=is_target)
    of_targets = () if None in defaults else tuple(map(kind.format, defaults))
    return parameter(kind, text, default=None, is_target=is_target)._replace(defaults=of_targets)


def _either(kinds: Sequence[Kind[Any]]) -> Kind[Any]:
    """A choice of the words of any of these choices."""

    names = dict.fromkeys(name for kind in kinds for name in kind.name.split("|"))

    def parse(text: str) -> Any:
        for kind in kinds:
            with contextlib.suppress(InvalidValue):
                return kind.parse(text)
        raise InvalidValue(f"{shown(text)} is not one of {', '.join(names)}")

    return Kind("|".join(names), parse, kinds[0].format, kinds[0].absent)


def _as_own(operation: Operation[Any], shared: TaskParameters) -> Any:
    """The parameters of one meaning; raises InvalidValue for unknown or missing ones."""
    declared = {each.name for each in operation.declared}
    texts = {}
    for each in shared.declared:
        value = getattr(shared, each.name)
        if value == each.default:
            continue
        if each.name not in declared:
            raise InvalidValue(f"{each.name} is not for {operation.target}")
        texts[each.name] = each.kind.format(value)
    return parse_parameters(operation.parameters, texts)
