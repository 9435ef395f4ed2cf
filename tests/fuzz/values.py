"""What writes are made of: names, and values near the limits of their kinds."""

from __future__ import annotations

from typing import Final

from tests.fuzz.checks import OPERATIONS

NUMBERS: Final = tuple(
    str(number + more)
    for number in (0, 1, 19, 127, 255, 1023, 1024, 4095, 4096, 2**16, 2**31, 2**32, 2**53, 2**63, 2**64, 10**19, 10**40)
    for more in (-1, 0, 1)
)
SIZES: Final = tuple(
    f"{number}{suffix}"
    for number in (
        "0",
        "1",
        "7",
        "8",
        "15",
        "16",
        "1023",
        "8388607",
        "8589934592",
        "0x10",
        "0XfF",
        "00",
        "1.5",
        ".5",
        "-1",
    )
    for suffix in ("", "K", "M", "GiB", "Ti", "P", "E", "e", "kb", "MB", "Q", "KK", "iB")
)
WORDS: Final = (
    "",
    "0",
    "1",
    "max",
    "all",
    "none",
    "random",
    "-",
    "a",
    "A5",
    "a5a",
    "0600",
    "0777",
    "1000",
    "٣",
    "²",
    "１",
)
LISTS: Final = ("0", "0-3", "0-1023", "1023", "1024", "3-1", "0,0,0", "0-", "-0", ",", "0-3,2-8,9", "0-4,5", " 1", "1 ")
PATHS: Final = (
    "/",
    "/dev/hugepages/vm0",
    "a",
    "./a b",
    "'",
    '"',
    "\\",
    "a=b",
    "{",
    "[",
    "é",
    "\udcff",
    "\udcc3\udca9",
    "\x00",
)
LONG: Final = (
    "/" + "a" * 4093,
    "/" + "a" * 4094,
    "/" + "é" * 2047,
    "/" + "'" * 4094,
    "a" * 255,
    "a" * 256,
    "ab" * 5000,
)
TOKENS: Final[tuple[bytes, ...]] = tuple(
    each.encode("utf-8", "surrogatepass")
    for each in (
        *" \t\n\r\x0b\x0c\x00\x1b\x7f'\"\\=,{}[]:-+.#$`~*\x85\u00a0\u2028\u202e\ufeff\ud800\U0001f600",
        *(
            "''",
            '""',
            "\\\n",
            "\r\n",
            "\\u0000",
            "\\ud800",
            "\\udcff",
            "null",
            "true",
            "NaN",
            "-Infinity",
            "1e9",
            "1.0",
        ),
        *(
            " path=",
            " name=x",
            "=",
            "}}",
            "]]",
            "[[",
            '"op"',
            '{"op":',
            '"op": "clear",',
            "},{",
            "} {",
            "[1,2]",
            "[]",
            "{}",
        ),
        *(" op=clear", "max", "-1", "9" * 41, "0x", "18446744073709551616", "8E", "7Q", "queue=1", "plan=1", "undo=1"),
    )
)
NAMES: Final = (*(5 * tuple(OPERATIONS)), "frobnicate", "", "CLEAR", "pause", "op", "cle ar", "clear\x00", "k" * 200)
KEYS: Final = tuple(sorted({each.name for operation in OPERATIONS.values() for each in operation.declared}))
WRONG_KEYS: Final = ("op", "", " ", "Path", "colour", "path ", "pаth", "\x1b[31m", "k" * 300, "name\n", "__class__")
TARGETS: Final = ("path", "pid")
"""The parameters of which an operation mostly wants one."""
POOLS: Final = {
    "size": SIZES,
    "number": NUMBERS,
    "0/1": ("0", "1", "1", "2", "true"),
    "mode": ("0600", "777", "0777", "1000", "8", "", "00000", "000000", "-1"),
    "path": PATHS,
    "word": WORDS,
    "cpulist": LISTS,
    "number|max": (*NUMBERS, "max", "max"),
    "size|max": (*SIZES, "max", "max"),
    "pid": NUMBERS,
    "address|all": (*NUMBERS, "0x7f0000000000", "all", "all"),
    "hex": ("a5", "A5000b", "", "0", "zz", "a5 a5", "0x10", "ff" * 127, "f" * 256, "none", "random", "1234abcd"),
}
"""Values near the limits, by the name of a kind of values; other kinds are lists of words."""
ANY: Final = (*SIZES, *NUMBERS, *WORDS, *LISTS, *PATHS)
GOOD: Final = {
    "size": "2M",
    "number": "3",
    "0/1": "1",
    "mode": "0640",
    "path": "/dev/hugepages/vm0",
    "word": "vm0",
    "cpulist": "0-1",
    "number|max": "4",
    "size|max": "1G",
    "pid": "4711",
    "address|all": "0x7f0000000000",
    "hex": "a5000b5c",
}
"""A value that every kind of the name takes."""
