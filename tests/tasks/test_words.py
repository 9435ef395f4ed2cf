"""Words of a line: the same as the standard library's shlex finds, character by character, in linear time."""

from __future__ import annotations

import shlex

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ktaskfs.errors import SpecError
from ktaskfs.tasks.words import QUOTES_MAX, WORDS_MAX, Word, split_words

LINES = st.text(st.sampled_from("ab=/ \t\r\n'\"\\\\é$`#\v"), max_size=40)


def by_shlex(line: str) -> list[str] | None:
    """The words, or None for a line that has no end."""
    lexer = shlex.shlex(line, posix=True)
    lexer.whitespace_split = True
    lexer.commenters = ""
    try:
        return list(lexer)
    except ValueError:
        return None


@given(LINES)
@example('a\'\'b \'\' "" c\\ d "e\\"f\\g\\\\"')
@example("\\")
@example("'")
@example('"\\')
def test_the_words_are_those_of_shlex(line: str) -> None:
    expected = by_shlex(line)
    if expected is None:
        with pytest.raises(SpecError, match="not closed"):
            split_words(line)
    else:
        assert [word.text for word in split_words(line)] == expected


@given(st.lists(st.text("ab=/é", min_size=1), max_size=9))
def test_each_word_knows_its_place(words: list[str]) -> None:
    line = "  ".join(words)
    assert [line[word.start : word.end] for word in split_words(line)] == words


def test_a_quoted_word_includes_its_quotes() -> None:
    assert split_words(" path='a b' x") == [Word("path=a b", 1, 11), Word("x", 12, 13)]


@pytest.mark.parametrize("end", ["'", '"', "\\"])
def test_a_line_without_an_end_names_the_word(end: str) -> None:
    with pytest.raises(SpecError) as caught:
        split_words(f"copy path=a{end}")
    assert (caught.value.start, caught.value.end) == (5, 12)


def test_too_many_words_are_refused() -> None:
    assert len(split_words("w " * WORDS_MAX)) == WORDS_MAX
    with pytest.raises(SpecError, match="more than"):
        split_words("w " * (WORDS_MAX + 1))


def test_too_many_quotes_are_refused() -> None:
    assert split_words("\\a" * QUOTES_MAX)[0].text == "a" * QUOTES_MAX
    with pytest.raises(SpecError, match="quotes"):
        split_words("\\a" * (QUOTES_MAX + 1))
