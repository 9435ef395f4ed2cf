"""Numbers as people write them, both ways."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ktaskfs.errors import InvalidValue
from ktaskfs.units import (
    SIZE_MAX,
    SUFFIXES,
    compared_sizes,
    escaped,
    format_cpulist,
    format_size,
    human_size,
    parse_cpulist,
    parse_int,
    parse_size,
    printable,
    shown,
    unescaped,
)

SIZES = st.integers(0, SIZE_MAX)


@given(SIZES)
def test_a_size_is_read_back_from_its_text(number: int) -> None:
    assert parse_size(format_size(number)) == number


@given(SIZES)
def test_no_other_suffix_gives_a_shorter_exact_text(number: int) -> None:
    exact = [f"{number >> shift}{suffix}" for suffix, shift in SUFFIXES.items() if number % (1 << shift) == 0]
    assert len(format_size(number)) == min(map(len, exact))


@given(st.integers(0, 2**20), st.sampled_from(sorted(SUFFIXES)))
def test_suffixes_are_powers_of_1024_in_either_case_and_after_hexadecimal(number: int, suffix: str) -> None:
    expected = number << SUFFIXES[suffix]
    hexadecimal = [] if suffix == "E" else [f"{number:#x}{suffix}", f"{number:#X}{suffix}"]
    long = [f"{number}{suffix}{end}" for end in ("i", "iB", "ib", "I")] if suffix else []
    for text in (f"{number}{suffix}", f"{number}{suffix.lower()}", *hexadecimal, *long):
        assert _or_none(text) == (expected if expected <= SIZE_MAX else None)


def test_after_0x_the_letter_e_is_a_digit() -> None:
    assert parse_size("0x1E") == 30


def _or_none(text: str) -> int | None:
    try:
        return parse_size(text)
    except InvalidValue:
        return None


@pytest.mark.parametrize(
    "text",
    ["", " ", "-", "0x", "K", "1KB", "1kB", "1iB", "1B", "1KBi", "1Kib ", "1.5G", ".", "1e3"]
    + ["1_000", "+1", " 1", "1 ", "1\n", "0x1 ", "0b1", "1,2"]
    + ["٣", "²", "１", "0x１", "1К", "\0", "0x-1", "--1", "9" * 41, "0x" + "f" * 41, "9" * 60_000, "8E"],
)
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(InvalidValue):
        parse_size(text)


@pytest.mark.parametrize("text", ["1K", "1E", "0x1G"])
def test_a_plain_number_takes_no_suffix(text: str) -> None:
    with pytest.raises(InvalidValue, match="is not a number"):
        parse_int(text)


@given(st.integers(-(2**70), 2**70), st.integers(0, 2**63), st.integers(0, 2**63))
def test_numbers_are_taken_within_their_bounds_only(number: int, least: int, most: int) -> None:
    try:
        assert parse_int(str(number), least=least, most=most) == number
    except InvalidValue:
        assert not least <= number <= most
    else:
        assert least <= number <= most


def test_a_negative_number_is_called_so() -> None:
    with pytest.raises(InvalidValue, match="'-5' is negative"):
        parse_int("-5")
    with pytest.raises(InvalidValue, match="'-5G' is negative"):
        parse_size("-5G")


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("2MB", "MB has powers of 1000 or of 1024; write 2M or 2MiB for 1024"),
        ("64gb", "GB has powers of 1000 or of 1024; write 64G or 64GiB for 1024"),
        ("1.5G", "fractions are not allowed; write 1536M"),
        ("1.5GiB", "fractions are not allowed; write 1536M"),
        (".5T", "fractions are not allowed; write 512G"),
        ("0.1G", "fractions are not allowed; write 102M"),
        ("1.0", "fractions are not allowed; write 1"),
    ],
)
def test_a_size_that_can_be_guessed_is_refused_with_what_to_write(text: str, hint: str) -> None:
    with pytest.raises(InvalidValue) as refusal:
        parse_size(text)
    assert refusal.value.message == f"'{text}' is not a size (such as 4096, 0x1000, 64G or 64GiB): {hint}"
    parse_size(hint.rpartition("write ")[2].split()[0])


@pytest.mark.parametrize(
    ("text", "expected"), [("caf\udce9", "caf\\351"), ("a\x1b[1m\n", "a\\033[1m\\012"), ("é\\", "é\\"), ("\ud800", "?")]
)
def test_what_cannot_be_printed_is_shown_in_octal(text: str, expected: str) -> None:
    assert printable(text) == expected


@given(st.binary().map(os.fsdecode))
def test_a_name_can_be_read_back(name: str) -> None:
    text = escaped(name)
    assert text.isprintable()
    assert unescaped(text) == name


@given(st.text())
def test_a_message_stays_as_it_is_in_the_next_process(text: str) -> None:
    assert printable(printable(text)) == printable(text)


def test_leading_zeros_do_not_mean_octal() -> None:
    assert parse_int("010") == 10


@given(st.text())
def test_arbitrary_text_is_a_number_or_invalid(text: str) -> None:
    for parse in (parse_int, parse_size, parse_cpulist):
        refusal = None
        try:
            parse(text)
        except InvalidValue as error:
            refusal = error
        if refusal is not None:
            assert refusal.message.isprintable()
            assert len(refusal.message) < 600


@given(st.text())
def test_what_a_message_shows_is_short_printable_ascii(text: str) -> None:
    quoted = shown(text)
    assert quoted.isascii()
    assert quoted.isprintable()
    assert len(quoted) <= 10 * 40 + 2


@given(st.sets(st.integers(0, 4095)))
def test_a_cpulist_is_read_back_from_its_text(numbers: set[int]) -> None:
    text = format_cpulist(numbers)
    if numbers:
        assert parse_cpulist(text) == tuple(sorted(numbers))
    else:
        assert text == ""


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(0, 12)), min_size=1))
def test_overlapping_ranges_in_any_order_make_one_sorted_list(ranges: list[tuple[int, int]]) -> None:
    text = ",".join(f"{low}-{low + more}" if more else str(low) for low, more in ranges)
    expected = {number for low, more in ranges for number in range(low, low + more + 1)}
    assert parse_cpulist(text) == tuple(sorted(expected))


@pytest.mark.parametrize("text", ["", ",", "1,", ",1", "1-", "-1", "1--2", "1-2-3", "a", "0-9:2/4"])
def test_what_is_no_cpulist(text: str) -> None:
    with pytest.raises(InvalidValue) as refusal:
        parse_cpulist(text)
    assert refusal.value.message == f"{text!r} is not a list of numbers (such as 0-3,8)"


@pytest.mark.parametrize(
    ("text", "message"),
    [("0,3-1", "'3-1' runs backwards"), ("0-4096", "'4096' is above the maximum, 4095")],
)
def test_a_cpulist_with_a_wrong_number(text: str, message: str) -> None:
    with pytest.raises(InvalidValue) as refusal:
        parse_cpulist(text)
    assert refusal.value.message == message


def test_a_command_full_of_long_ranges_costs_no_more_than_one() -> None:
    assert len(parse_cpulist(",".join(["0-4095"] * 9000))) == 4096


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0B"),
        (1023, "1023B"),
        (1023.7, "1.0KiB"),
        (1024, "1.0KiB"),
        (2**20 - 1, "1.0MiB"),
        (19.4 * 2**30, "19.4GiB"),
        (2**60, "1.0EiB"),
        (2**70, "1024.0EiB"),
    ],
)
def test_sizes_for_people(number: float, text: str) -> None:
    assert human_size(number) == text


@given(SIZES, SIZES)
def test_sizes_that_differ_look_different(one: int, other: int) -> None:
    assert (len(set(compared_sizes(one, other))) == 1) == (one == other)


def test_sizes_that_are_compared_are_exact_only_if_they_must_be() -> None:
    assert compared_sizes(3 << 29, 1 << 20) == ("1.5GiB", "1.0MiB")
    assert compared_sizes((4 << 30) + 4096, 4 << 30) == ("4194308K", "4G")


@given(st.floats(0, 2**60))
def test_a_size_for_people_is_never_1024_of_a_unit(number: float) -> None:
    assert not human_size(number).startswith("1024")
