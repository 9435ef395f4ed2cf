"""The tunables: bounds, defaults, notification."""

from __future__ import annotations

import pytest

from ktaskfs.errors import InvalidValue
from ktaskfs.tasks.tunables import PREFIX, TUNABLES, Settings, Tunable

EACH = pytest.mark.parametrize("tunable", TUNABLES, ids=lambda each: each.name)


def test_names_are_unique_and_files_are_the_kernels() -> None:
    assert len({each.name for each in TUNABLES}) == len(TUNABLES)
    assert {each.file for each in TUNABLES} >= {"ktask_max_threads", "ktask_cpu_percent", "ktask_load_bal_shift"}
    assert all(each.file == PREFIX + each.name for each in TUNABLES)


@EACH
def test_the_default_is_within_the_bounds(tunable: Tunable) -> None:
    assert tunable.least <= tunable.default <= tunable.most
    assert Settings({})[tunable.name] == tunable.default


@EACH
def test_both_bounds_are_taken_and_nothing_beyond(tunable: Tunable) -> None:
    settings = Settings({})
    for value in (tunable.least, tunable.most):
        settings.set(tunable, tunable.format(value))
        assert settings[tunable.name] == value
    words = ("0", "Caller", "caller daemon") if tunable.words else () if tunable.top else ("max",)
    for text in (*words, str(tunable.least - 1), str(tunable.most + 1), "", "MAX", "1K", "1.0", "\u0663"):
        with pytest.raises(InvalidValue, match=tunable.file):
            settings.set(tunable, text)
        assert settings[tunable.name] == tunable.most


def test_what_was_given_at_the_start_is_in_force() -> None:
    settings = Settings({"nice": 3})
    assert (settings["nice"], settings["cpu_percent"]) == (3, 80)


def test_observers_hear_of_changes_that_are_made() -> None:
    settings = Settings({})
    heard: list[int] = []
    settings.observers.append(lambda: heard.append(settings["nice"]))
    nice = next(each for each in TUNABLES if each.name == "nice")
    settings.set(nice, "5")
    with pytest.raises(InvalidValue):
        settings.set(nice, "20")
    assert heard == [5]
