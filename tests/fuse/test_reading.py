"""Ordinary programs read text files and streams."""

from __future__ import annotations

import os
import signal
import subprocess
import tarfile
from typing import TYPE_CHECKING

import pytest

from tests.support.poll import DEADLINE
from tests.support.shell import run

if TYPE_CHECKING:
    from pathlib import Path

    from tests.fuse.conftest import Example
    from tests.support.users import User

LONG = "".join(f"{number:07}\n" for number in range(40_000))


@pytest.mark.parametrize(
    ("script", "out"),
    [
        ("cat hello empty dir/inner", "hello, world\ninner\n"),
        ("head -c 5 hello", "hello"),
        ("tail -c 6 hello", "world\n"),
        ("tail -n 1 long", "0039999\n"),
        ("dd if=hello bs=1 status=none", "hello, world\n"),
        ("wc -c < long", "320000\n"),
        ("cmp hello <(echo hello, world) && echo same", "same\n"),
        ("read x < hello; echo $x", "hello, world\n"),
        ("echo $(<hello)", "hello, world\n"),
        ("grep -c 1 long", f"{sum('1' in line for line in LONG.splitlines())}\n"),
        ("awk 'END {print NR}' long", "40000\n"),
        ("sed -n 3p long", "0000002\n"),
        ("tee < hello", "hello, world\n"),
        ("less hello", "hello, world\n"),
        ("while read x; do echo $x; done < lines", "one\ntwo\nthree\n"),
        ("tail -c 4 lines", "ree\n"),
        ("sed -n p lines", "one\ntwo\nthree\n"),
        ("less lines", "one\ntwo\nthree\n"),
        ("dd if=lines bs=1 status=none", "one\ntwo\nthree\n"),
        ("cat slow", "at last\n"),
        ("read x < slow; echo $x", "at last\n"),
        ('python3 -c \'print(open("slow").read(), end="")\'', "at last\n"),
    ],
)
def test_a_program_reads(example: Example, script: str, out: str) -> None:
    outcome = example.shell(script)
    assert (outcome.status, outcome.out, outcome.err) == (0, out, "")


def test_a_stream_is_read_like_a_pipe(example: Example) -> None:
    """A program cannot seek back after a read; head(1) tries to, and reports that."""
    outcome = example.shell("head -n 2 lines | tail -n 1; (head -c 4; cat) < lines; read x < lines; echo $x")
    assert (outcome.out, outcome.status) == ("two\none\ntwo\nthree\none\n", 0)
    assert outcome.err == "head: lines: cannot seek to relative offset -6: Illegal seek\n"
    for call in ("os.lseek(f, 0, os.SEEK_CUR)", "os.pread(f, 1, 0)"):
        outcome = example.run("python3", "-c", f"import os; f = os.open('lines', os.O_RDONLY); {call}")
        assert outcome.err.endswith("OSError: [Errno 29] Illegal seek\n")


@pytest.mark.parametrize("size", [0, 1, 4095, 4096, 4097, 70_000])
def test_what_stat_says_is_what_a_program_reads(example: Example, size: int) -> None:
    """Also while it changes, by splice(2) and sendfile(2), and for another who has had it open all the time."""
    script = """
import os, subprocess, sys, threading
def spliced(path):
    fd, (out, into) = os.open(path, os.O_RDONLY), os.pipe()
    got = b""
    while os.splice(fd, into, 1 << 16):
        got += os.read(out, 1 << 16)
    for each in (fd, out, into):
        os.close(each)
    return got
def sent(path):
    fd, to = os.open(path, os.O_RDONLY), os.memfd_create("to")
    while os.sendfile(to, fd, None, 1 << 20):
        pass
    os.close(fd)
    got = os.pread(to, 1 << 20, 0)
    os.close(to)
    return got
def read(path):
    with open(path, "rb") as file:
        assert os.fstat(file.fileno()).st_size == len(text := file.read())
    return text
held = os.open("sized", os.O_RDONLY)
os.read(held, 1)
for change in range(-1, 40):
    size = max(0, int(sys.argv[1]) + change % 3 - 1)
    fill = b"%c" % (ord("a") + change % 26)
    with open("sized", "wb", buffering=0) as file:
        file.write(b"%d %b" % (size, fill))
    for way in (sent, spliced, read, sent, spliced):
        got = way("sized")
        assert got == fill * size, (way, size, fill, len(got), got[:3], got[-3:])
    assert os.stat("sized").st_size == size
    if change % 4 == 0:
        assert os.pread(held, 1 << 20, 0) == fill * size
"""
    outcome = example.run("python3", "-c", script, str(size))
    assert (outcome.status, outcome.err) == (0, "")


def test_copies_are_whole(example: Example, area: Path) -> None:
    assert example.run("cp", "-r", "long", "lines", "dir", str(area)).status == 0
    assert (area / "long").read_text() == LONG
    assert (area / "lines").read_text() == "one\ntwo\nthree\n"
    assert (area / "dir" / "inner").read_text() == "inner\n"


def test_tar_and_grep_get_past_streams_that_never_end(example: Example, area: Path) -> None:
    archive = area / "all.tar"
    assert example.run("tar", "-c", "-f", str(archive), "--exclude=many", "--exclude=faults", ".").status == 0
    with tarfile.open(archive) as tar:
        assert "./dir/inner" in tar.getnames()
    outcome = example.run("grep", "-r", "--exclude-dir=many", "--exclude-dir=faults", "world", ".")
    assert outcome.out == "./hello:hello, world\n"
    assert "silence: Resource temporarily unavailable" in outcome.err


def test_an_open_file_keeps_its_text_and_a_second_one_is_made_anew(example: Example) -> None:
    outcome = example.shell("exec 3< renders; cat renders; cat <&3; cat renders")
    first, second, third = (int(line) for line in outcome.out.split())
    assert second < first < third
    requests = example.requests("cat renders > /dev/null")
    made = int(example.cat("renders"))
    assert made - third <= 102, f"each cat makes one text: {requests}"


def test_a_read_back_at_the_start_makes_the_text_anew(example: Example) -> None:
    fd = os.open(example.path / "renders", os.O_RDONLY)
    try:
        first, rest, again = os.pread(fd, 100, 0), os.pread(fd, 100, 1), os.pread(fd, 100, 0)
        assert (rest, int(again)) == (b"\n", int(first) + 1)
    finally:
        os.close(fd)


def test_who_opened_the_file_is_its_caller(example: Example, two_users: tuple[User, User]) -> None:
    for user in two_users:
        assert example.cat("whoami", user=user).split()[:2] == [str(user.uid), str(user.gid)]
    fd = os.open(example.path / "whoami", os.O_RDONLY)
    child = subprocess.Popen(["cat"], stdin=fd, stdout=subprocess.PIPE)
    os.close(fd)
    assert child.communicate()[0].split() == [b"0", b"0", str(os.getpid()).encode()]


def test_modes_are_checked_by_the_kernel(example: Example, two_users: tuple[User, User]) -> None:
    user, _ = two_users
    assert example.cat("secret") == "secret\n"
    assert example.run("cat", "secret", user=user).errname == "EACCES"
    assert example.shell("echo 1 > number", user=user).errname == "EACCES"
    assert example.shell("echo 1 > commands", user=user).status == 0


def test_what_is_unforeseen_is_an_io_error_with_its_traceback_in_the_log(example: Example) -> None:
    for command in ("cat", "stat"):
        outcome = example.run(command, "faults/broken")
        assert outcome.errname == "EIO"
        log = example.log.read_text()
        assert log.startswith("lookup failed\nTraceback")
        assert log.endswith("ZeroDivisionError: on purpose\n")
        example.log.write_text("")


def test_a_reader_of_a_stream_that_gives_nothing_can_be_interrupted(example: Example) -> None:
    child = subprocess.Popen(["cat", str(example.path / "silence")])
    example.shell("until grep -q 'streams\": 1' counts; do :; done")
    child.send_signal(signal.SIGINT)
    assert child.wait(DEADLINE) == -signal.SIGINT


def test_without_blocking_a_silent_stream_has_nothing_yet(example: Example) -> None:
    fd = os.open(example.path / "silence", os.O_RDONLY | os.O_NONBLOCK)
    try:
        with pytest.raises(BlockingIOError):
            os.read(fd, 1)
    finally:
        os.close(fd)


def test_the_mount_shows_its_type_and_has_no_room(example: Example) -> None:
    assert run("findmnt", "-n", "-o", "SOURCE,FSTYPE", str(example.path)).out.split() == ["example", "fuse.example"]
    totals = os.statvfs(example.path)
    assert (totals.f_bsize, totals.f_blocks, totals.f_files, totals.f_namemax) == (4096, 0, 0, 255)
