"""What the command reports about tasks, and when; without a mount."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

import pytest

from ktaskfs.cli.follow import Standing, exit_status
from ktaskfs.cli.phrases import complaint, duration, line
from ktaskfs.cli.reports import JsonReport, Lines
from ktaskfs.cli.specs import of_words, read_specs
from ktaskfs.errors import Refused, WrongCommandLine

if TYPE_CHECKING:
    from collections.abc import Sequence


def running(done: int, name: str = "a") -> Standing:
    figures = {"units": "pages", "done": done, "total": 1000, "percent": done / 10, "speed": 5, "finish_usec": 200e6}
    return Standing(name, "running", figures)


class Clock:
    """A clock that stands still until a test moves it."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_json_comes_with_news_once_a_second_and_without_any_within_five(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    report = JsonReport(clock)

    def said(now: float, standing: Standing) -> bool:
        clock.now = now
        report.show([standing])
        out = capsys.readouterr().out
        assert out.count("\n") <= 1
        return bool(out) and json.loads(out)["name"] == "a"

    assert [said(at, running(done)) for at, done in ((0, 1), (0.25, 2), (1, 3), (2, 3), (4, 3), (5, 3))] == [
        True, False, True, False, False, True,
    ]  # fmt: skip
    assert said(5.1, running(3)._replace(stale=True))
    assert not said(6.1, running(3)._replace(stale=True))
    ended = Standing("a", "done", {}, result="")
    assert said(6.2, ended)
    assert not said(99, ended)


def test_lines_come_with_each_state_and_from_time_to_time(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    report = Lines(clock)
    for at, standing in ((0, running(1)), (1, running(2)), (5, running(3)), (6, running(3)._replace(state="paused"))):
        clock.now = at
        report.show([standing, running(0, "b")])
    assert [text.split()[:3] for text in capsys.readouterr().err.splitlines()] == [
        ["a:", "running", "0.1%"],
        ["b:", "running", "0.0%"],
        ["a:", "running", "0.3%"],
        ["b:", "running", "0.0%"],
        ["a:", "paused", "0.3%"],
    ]


def test_sentences() -> None:
    assert line(running(461)) == "a: running 46.1% 461 pages/1000 pages 5 pages/s finish 3m20s"
    assert line(Standing("a", "queued", {"total": None})) == "a: queued"
    assert line(running(1)._replace(stale=True)) == "a: the daemon does not answer; trying again"
    done = {"units": "bytes", "total": 1 << 36, "speed": 1 << 34, "elapsed_usec": 4_000_000}
    assert line(Standing("a", "done", done)) == "a: done 64.0GiB in 4.0s, 16.0GiB/s"
    failed = {"errno": 12, "error_position": 4096, "error": "no pages"}
    assert complaint(Standing("a", "failed", failed)) == "a failed: ENOMEM at 4096: no pages"
    assert complaint(Standing("a", "failed", failed | {"error_position": 0})) == "a failed: ENOMEM: no pages"
    assert complaint(running(5)._replace(state="cancelled")) == "a was cancelled at 5 pages/1000 pages"


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0.0s"), (59.94, "59.9s"), (59.96, "1m00s"), (3599.9, "1h00m"), (7500, "2h05m")]
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("states", "status"),
    [
        (["done", "planned"], 0),
        (["done", "cancelled"], 3),
        (["cancelled", "interrupted"], 4),
        (["interrupted", "failed", "cancelled"], 1),
        (["forgotten", "done"], 1),
    ],
)
def test_the_status_of_several(states: Sequence[str], status: int) -> None:
    assert exit_status([Standing("a", state, {}) for state in states]) == status


def test_a_key_is_added_to_each_spec_of_any_form() -> None:
    text = 'clear path="a b"\n\n{"op": "clear",\n "path": "/é", "plan": 1}[{"op": "free"}, {}]\n  free path=/x\\\\'
    assert [each.adding("plan").text for each in read_specs(text)] == [
        "clear 'path=a b' plan=1",
        '{"op": "clear", "path": "/\\u00e9", "plan": 1}',
        '{"op": "free","plan": 1}',
        '{"plan": 1}',
        "free 'path=/x\\' plan=1",
    ]
    (spec,) = read_specs('{"op": "migrate", "nodes": [0, 1], "undo": true, "length": 4096, "name": "n"}')
    assert spec.values == {"op": "migrate", "nodes": "0,1", "undo": "1", "length": "4096", "name": "n"}
    assert spec.name == "n"


@pytest.mark.parametrize("text", ["clear path='x", '{"op": ', '{"op": 1, "op": 2}', "[1]", "clear path=x\\"])
def test_what_cannot_be_split_is_refused(text: str) -> None:
    with pytest.raises(Refused, match="cannot read the spec|not JSON|is not closed"):
        read_specs(text)


def test_words_with_a_line_break_in_another_locale(monkeypatch: pytest.MonkeyPatch) -> None:
    """The daemon reads UTF-8: the word has a letter of two bytes, and a byte that is none."""
    monkeypatch.setattr(os, "fsencode", lambda text: text.encode("latin-1"))
    word = "path=/a\n\u00e9\xff".encode().replace(b"\xc3\xbf", b"\xff").decode("latin-1")
    text = of_words(["clear", word])
    assert json.loads(text)["path"] == "/a\n\u00e9\udcff"
    (spec,) = read_specs(text)
    assert json.loads(spec.adding("plan").text)["path"] == "/a\n\u00e9\udcff"


def test_json_in_another_locale(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsencode", lambda text: text.encode("latin-1"))
    (spec,) = read_specs('{"op": "clear", "path": "/\u00e9"}'.encode().decode("latin-1"))
    assert json.loads(spec.adding("plan").text)["path"] == "/\u00e9"
    assert spec.values["path"] == "/\u00e9"


def test_several_specs_are_not_words_of_one() -> None:
    with pytest.raises(WrongCommandLine) as refusal:
        of_words(["clear path=/a", "clear path=/b"])
    assert refusal.value.message == "one spec only, in words or as one word; write several to ktaskfs run -, one a line"


def test_words_of_a_shell() -> None:
    assert of_words(["clear path='a b'"]) == "clear path='a b'"
    assert of_words(["clear", "path=a b", "length=4K"]) == "clear 'path=a b' length=4K"
    assert of_words(["clear", "path=a\nb=", "length=4K"]) == '{"op": "clear", "path": "a\\nb=", "length": "4K"}'
