"""Lines for a pipe that nobody reads are dropped, and counted."""

from __future__ import annotations

import fcntl
import os
import select
import threading
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest

from ktaskfs.line_output import PIECE, LineOutput
from tests.support.poll import DEADLINE

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

LINE = "x" * (PIECE - 1)


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """Both ends of a pipe with room for two pieces."""
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 2 * PIECE)
    yield reader, writer
    os.close(writer)


def test_lines_that_nobody_reads_are_dropped(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    output = LineOutput(writer)
    for _ in range(5):
        output.write(LINE)
    assert os.read(reader, 8 * PIECE) == f"{LINE}\n{LINE}\n".encode()
    output.write("a")
    output.write("b")
    assert os.read(reader, PIECE) == b"\nlines dropped, because nobody read them: 3\na\nb\n"
    output.close()
    os.close(reader)


def test_a_line_for_which_there_is_no_room_is_cut(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    output = LineOutput(writer)
    output.write(3 * LINE)
    assert os.read(reader, 8 * PIECE) == (3 * LINE)[: 2 * PIECE].encode()
    output.write("a")
    assert os.read(reader, PIECE) == b"\nlines dropped, because nobody read them: 1\na\n"
    output.close()
    os.close(reader)


def test_another_process_fills_the_pipe_just_before_the_write(
    pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The daemon and its spawner have one standard error."""
    reader, writer = pipe
    monkeypatch.setattr(select, "poll", lambda: SimpleNamespace(register=lambda *_: None, poll=lambda _: [(writer, 4)]))
    output = LineOutput(writer)
    os.write(writer, bytes(2 * PIECE))
    thread = threading.Thread(target=output.write, args=("a",))
    thread.start()
    thread.join(DEADLINE)
    hangs = thread.is_alive()
    os.close(reader)  # ends a write that waits
    thread.join(DEADLINE)
    output.close()
    assert not hangs


def test_a_pipe_that_is_closed_takes_nothing(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    os.close(reader)
    LineOutput(writer).write("a")


def test_a_file_takes_all(tmp_path: Path) -> None:
    with (tmp_path / "log").open("wb") as file:
        output = LineOutput(file.fileno())
        output.write(3 * LINE)
        output.write("\udcff")
    assert (tmp_path / "log").read_bytes() == (3 * LINE).encode() + b"\n\\udcff\n"
