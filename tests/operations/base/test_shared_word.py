"""Operations of one name: the parameters of a spec decide which one it means."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from ktaskfs.errors import InvalidValue, NotSupported
from ktaskfs.operations.base.operation import Operation
from ktaskfs.operations.base.parameters import COUNT, FLAG, TaskParameters, choice, parameter, parse_parameters
from ktaskfs.operations.base.shared_word import SharedWord
from ktaskfs.span import NO_NODE, Node
from ktaskfs.units import BYTES, PAGES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ktaskfs.operations.base.plan import Plan, Preparation
    from tests.support.runner import Runner


class WallParameters(TaskParameters):
    what: str = parameter(choice("wall", "board"), "what to paint")
    coats: int = parameter(COUNT, "how often", default=2)
    colour: str = parameter(choice("white", "grey"), "for walls", default="white")
    height: int | None = parameter(COUNT, "of the wall", default=None)


class BoardParameters(TaskParameters):
    what: str = parameter(choice("wall", "board"), "what to paint")
    coats: int = parameter(COUNT, "how often", default=2)
    colour: str = parameter(choice("red", "grey"), "for boards", default="red")
    sanded: bool = parameter(FLAG, "sand it before", default=False)

    def check(self) -> None:
        if self.coats > 9:
            raise InvalidValue("no board takes so many coats")


class Painting(Operation[Any]):
    name = "paint"
    units = BYTES

    def prepare(self, preparation: Preparation[Any]) -> Plan:
        own = preparation.parameters
        control = preparation.control(lambda start, end: None, least=1, most=8)
        nodes = (Node(0, own.coats, NO_NODE),)
        return preparation.plan(nodes, control, lambda outcome: f"{self.target} {own.colour}")


class PaintWall(Painting):
    target = "a wall"
    description = "Paint a wall."
    parameters = WallParameters
    no_undo = "paint stays on a wall"


class PaintBoard(Painting):
    target = "a board"
    description = "Paint a board."
    parameters = BoardParameters
    no_resume = "the board is wet"

    def means(self, parameters: Any) -> bool:
        return bool(parameters.what == "board")


@pytest.fixture
def paint() -> SharedWord:
    return SharedWord([PaintBoard(), PaintWall()])


def result(runner: Runner, paint: SharedWord, remaining: Sequence[Node] | None = None, **texts: str) -> str:
    operation, own = paint.meant(parse_parameters(paint.parameters, texts))
    return runner.result(operation.plan(runner.kernel, own, remaining))


def test_a_spec_is_for_the_one_that_means_it(runner: Runner, paint: SharedWord) -> None:
    assert result(runner, paint, what="wall") == "a wall white"
    assert result(runner, paint, what="board") == "a board red"
    assert result(runner, paint, what="wall", colour="grey", height="3") == "a wall grey"
    assert result(runner, paint, what="board", colour="red", sanded="1") == "a board red"


def test_one_description_covers_both(paint: SharedWord) -> None:
    assert paint.description == "Paint a wall.\nOf a board: Paint a board."
    shown = {each.name: (each.kind.name, each.default_text(), each.help, each.required) for each in paint.declared}
    assert shown["what"] == ("wall|board", "-", "what to paint", True)
    assert shown["coats"] == ("number", "2", "how often", False)
    assert shown["colour"] == ("white|grey|red", "white|red", "a wall: for walls; a board: for boards", False)
    assert shown["height"] == ("number", "-", "a wall: of the wall", False)
    assert shown["sanded"] == ("0/1", "0", "a board: sand it before", False)


def test_what_one_has_is_refused_to_the_other(runner: Runner, paint: SharedWord) -> None:
    for words, texts in {
        "height is not for a board": {"what": "board", "height": "3"},
        "sanded is not for a wall": {"what": "wall", "sanded": "1"},
        "'red' is not one of white, grey": {"what": "wall", "colour": "red"},
        "no board takes so many coats": {"what": "board", "coats": "10"},
    }.items():
        with pytest.raises(InvalidValue) as caught:
            result(runner, paint, None, **texts)
        assert caught.value.message == words


def test_what_none_of_them_takes_is_refused_when_the_spec_is_read(paint: SharedWord) -> None:
    with pytest.raises(InvalidValue, match="parameter what is missing"):
        parse_parameters(paint.parameters, {})
    with pytest.raises(InvalidValue, match="no board takes so many coats"):
        parse_parameters(paint.parameters, {"what": "board", "sanded": "1", "coats": "10"})
    with pytest.raises(InvalidValue, match="sanded is not for a wall"):
        parse_parameters(paint.parameters, {"what": "board", "sanded": "1", "height": "3"})
    with pytest.raises(InvalidValue, match="^'blue' is not one of white, grey, red$"):
        parse_parameters(paint.parameters, {"what": "board", "colour": "blue"})


def test_a_default_that_the_target_decides(paint: SharedWord) -> None:
    for texts, used in (
        ({"what": "wall"}, "white"),
        ({"what": "board"}, "red"),
        ({"what": "wall", "colour": "grey"}, "grey"),
    ):
        _, own = paint.meant(parse_parameters(paint.parameters, texts))
        assert paint.used_defaults(own) == {"colour": used}


def test_undo_and_resume_are_as_each_has_them(runner: Runner, paint: SharedWord) -> None:
    with pytest.raises(NotSupported, match="undo=1: paint stays on a wall"):
        result(runner, paint, what="wall", undo="1")
    assert result(runner, paint, what="board", undo="1") == "a board red"
    rest = [Node(1, 1, NO_NODE)]
    assert result(runner, paint, rest, what="wall") == "a wall white"
    with pytest.raises(NotSupported, match="resume: the board is wet"):
        result(runner, paint, rest, what="board")


def test_one_of_them_is_for_all_else() -> None:
    for wrong in ([PaintWall(), PaintWall()], [PaintBoard(), PaintBoard()]):
        with pytest.raises(TypeError, match="nothing says which of them a spec is for"):
            SharedWord(wrong)


def test_they_count_alike() -> None:
    other = PaintBoard()
    other.units = PAGES
    with pytest.raises(TypeError, match="different units"):
        SharedWord([PaintWall(), other])
