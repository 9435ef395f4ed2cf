"""Commands by write(2), replies on the same descriptor, and what cannot be written or changed."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

import pytest

from ktaskfs.vfs import COMMAND_MAX

if TYPE_CHECKING:
    from tests.fuse.conftest import Example


@pytest.mark.parametrize(
    "script",
    [
        "echo 12 > number",
        "echo -n 12 > number",
        "printf '  12\\n\\n' | dd of=number status=none",
        "echo 12 | tee number",
        "echo 12 | dd of=number status=none",
        "echo 12 | dd of=number conv=notrunc,fsync status=none",
        "echo 3 >> number; echo 12 >> number",
        'python3 -c \'open("number", "w").write("12")\'',
        "cp <(echo 12) number",
    ],
)
def test_a_program_writes(example: Example, script: str) -> None:
    outcome = example.shell(script)
    assert (outcome.status, outcome.err) == (0, "")
    assert example.cat("number") == "12\n"


@pytest.mark.parametrize(
    ("script", "errname"),
    [
        ("echo twelve > number", "EINVAL"),
        ("echo > number", "EINVAL"),
        ("echo 1 | dd of=number seek=1 bs=2 conv=notrunc status=none", "EINVAL"),
        ("printf '1\\0' > number", "EINVAL"),
        ("printf '\\xff' > number", "EINVAL"),
        ("echo 1 > hello", "EACCES"),
        ("echo 1 > lines", "EACCES"),
        ("echo 1 > dir", "EISDIR"),
        ("echo 1 > new", "EACCES"),
        ("touch new", "EACCES"),
        ("mknod new p", "EPERM"),
        ("ln hello new", "EPERM"),
        ("ln -s hello new", "EPERM"),
        ("rm hello", "EPERM"),
        ("mv hello new", "EPERM"),
        ("mkdir new", "EPERM"),
        ("rmdir dir", "EPERM"),
        ("chmod 666 hello", "EPERM"),
        ("chown 1 hello", "EPERM"),
    ],
)
def test_what_makes_no_sense_is_refused(example: Example, script: str, errname: str) -> None:
    state = "stat -c '%n %A %h %U' *; cat number"
    before = example.shell(state).out
    outcome = example.shell(script)
    assert (outcome.status != 0, outcome.errname) == (True, errname), outcome.err
    assert example.shell(state).out == before


def test_times_and_sizes_are_accepted_and_mean_nothing(example: Example) -> None:
    before = example.run("stat", "hello").out
    assert example.shell("touch hello; truncate -s 5 number; : > number").status == 0
    assert example.run("stat", "hello").out == before
    assert example.cat("number") == "7\n"


def test_the_longest_command_arrives_in_one_piece(example: Example) -> None:
    fd = os.open(example.path / "commands", os.O_RDWR)
    try:
        assert os.write(fd, b"x" * (COMMAND_MAX - 1) + b"\n") == COMMAND_MAX
        assert os.read(fd, 100) == f"1:{COMMAND_MAX - 1}\n".encode()
    finally:
        os.close(fd)


def test_without_a_newline_it_may_be_a_piece_until_close(example: Example) -> None:
    fd = os.open(example.path / "commands", os.O_WRONLY)
    assert os.write(fd, b"x" * COMMAND_MAX) == COMMAND_MAX
    assert example.cat("commands") == ""
    os.close(fd)
    assert example.cat("commands") == "x" * COMMAND_MAX


@pytest.mark.parametrize("size", [COMMAND_MAX + 1, 1 << 20, 5 << 20])
def test_a_longer_write_is_refused_whole(example: Example, size: int) -> None:
    fd = os.open(example.path / "commands", os.O_WRONLY)
    try:
        with pytest.raises(OSError, match=os.strerror(errno.E2BIG)):
            os.write(fd, b"x" * size)
    finally:
        os.close(fd)
    assert example.cat("commands") == ""


def test_a_descriptor_reads_the_replies_to_its_own_writes(example: Example) -> None:
    outcome = example.shell("exec 3<> commands; echo mine >&3; echo other > commands; read reply <&3; echo $reply")
    assert (outcome.out, outcome.err) == ("1:4\n", "")
    assert example.cat("commands") == "mine\nother"


def test_a_long_reply_is_read_in_small_pieces(example: Example) -> None:
    fd = os.open(example.path / "commands", os.O_RDWR)
    try:
        for text in (b"a", b"bb", b"ccc"):
            os.pwrite(fd, text, 0)
        assert b"".join(iter(lambda: os.read(fd, 1), b"")) == b"1:1\n2:2\n3:3\n"
    finally:
        os.close(fd)
