"""The number of the kernel's requests: each costs a round trip, which is most of the cost of a command."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.fuse.conftest import Example

# A file is looked up each time, which tells its size. Each close(2) is a flush: of a redirection the shell makes two.
# The kernel asks for extended attributes once in the life of the mount.
CAT = {"lookup": 1, "open": 1, "read": 2, "flush": 1, "release": 1}
ECHO = {"lookup": 1, "open": 1, "write": 1, "flush": 2, "release": 1}


@pytest.mark.parametrize(
    ("script", "requests"),
    [
        ("cat hello > /dev/null", CAT),
        ("cat dir/inner > /dev/null", CAT),
        ("echo 1 > number", ECHO),
        ("echo 1 >> number", ECHO),
        # A name of which every caller may see something else is looked up every time.
        ("cat items/a/value > /dev/null", CAT | {"lookup": 2}),
        ("stat hello > /dev/null", {"lookup": 1}),
        ("ls > /dev/null", {"getattr": 1, "opendir": 1, "readdir": 2, "releasedir": 1}),
    ],
)
def test_requests_of_a_command(example: Example, script: str, requests: dict[str, int]) -> None:
    example.shell("mkdir items/a")
    assert example.requests(script) == requests
