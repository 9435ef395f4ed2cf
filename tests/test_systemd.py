"""The messages to systemd, received by sockets of the test: the protocols of sd_notify(3) and of the journal."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import struct
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING

import pytest

from ktaskfs import systemd
from ktaskfs.systemd import PATIENCE, JournalHandler, Manager, stderr_is_journal

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "socket"))
        yield sock


def logged(listener: socket.socket, address: str, level: int, text: str, **extra: object) -> dict[bytes, bytes]:
    """Log once, and take the datagram apart."""
    handler = JournalHandler(address)
    try:
        handler.handle(logging.makeLogRecord({"levelno": level, "msg": text} | extra))
    finally:
        handler.close()
    data = listener.recv(1 << 16)
    fields = {}
    while data:
        name, _, rest = data.partition(b"\n")
        (size,) = struct.unpack_from("<Q", rest)
        fields[name] = rest[8 : 8 + size]
        assert rest[8 + size : 9 + size] == b"\n"
        data = rest[9 + size :]
    return fields


def fill(address: str) -> None:
    """Leave no room for a message."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as others, contextlib.suppress(BlockingIOError):
        while others.sendto(b"x", socket.MSG_DONTWAIT, address):
            pass


def test_the_manager_is_told(listener: socket.socket) -> None:
    manager = Manager({"NOTIFY_SOCKET": listener.getsockname()})
    assert manager.listens
    manager.tell("READY=1", "STATUS=2 tasks")
    assert listener.recv(100) == b"READY=1\nSTATUS=2 tasks"


def test_a_descriptor_is_handed_over_and_taken_back_before_it_returns(listener: socket.socket, tmp_path: Path) -> None:
    heard = []

    def keep() -> None:
        for _ in range(4):
            data, fds, _, _ = socket.recv_fds(listener, 100, 1)
            heard.append((data, [os.readlink(f"/proc/self/fd/{fd}") for fd in fds]))
            for fd in fds:
                os.close(fd)

    keeper = threading.Thread(target=keep, daemon=True)
    keeper.start()
    (tmp_path / "file").touch()
    manager = Manager({"NOTIFY_SOCKET": listener.getsockname()})
    with (tmp_path / "file").open() as file:
        manager.store(file.fileno(), "mount")
    assert heard[0] == (b"FDSTORE=1\nFDNAME=mount", [str(tmp_path / "file")])
    assert heard[1][0] == b"BARRIER=1"
    manager.forget("mount")
    assert heard[2] == (b"FDSTOREREMOVE=1\nFDNAME=mount", [])
    assert heard[3][0] == b"BARRIER=1"
    keeper.join()


def test_a_manager_that_keeps_a_descriptor_is_an_error(
    listener: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(systemd, "BARRIER_MAX", 0.1)
    manager = Manager({"NOTIFY_SOCKET": listener.getsockname()})
    with pytest.raises(TimeoutError, match="Connection timed out"):  # nobody reads the message
        manager.forget("mount")
    fill(listener.getsockname())
    with pytest.raises(TimeoutError, match="Connection timed out"):  # there is no room for it
        manager.forget("mount")
    listener.close()
    with pytest.raises(ConnectionRefusedError):
        manager.forget("mount")


PASSED = """
import os
from ktaskfs.systemd import Manager
for fd in (3, 4, 5):
    os.dup2(1, fd)
manager = Manager({"LISTEN_PID": str(os.getpid()), "LISTEN_FDNAMES": "other:mount"})
print(manager.kept("mount"), manager.kept("none"), *(os.get_inheritable(fd) for fd in (3, 4, 5)))
"""


def test_no_child_gets_a_descriptor_that_the_manager_passed() -> None:
    done = subprocess.run([sys.executable, "-c", PASSED], capture_output=True, text=True, check=True)
    assert done.stdout == "4 None False False True\n"


def test_an_abstract_socket() -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(f"\0ktaskfs-test-{os.getpid()}")
        Manager({"NOTIFY_SOCKET": f"@ktaskfs-test-{os.getpid()}"}).tell("READY=1")
        assert sock.recv(100) == b"READY=1"


def test_nobody_listens() -> None:
    manager = Manager({})
    assert not manager.listens
    assert manager.watchdog is None
    manager.tell("READY=1")


def test_a_manager_that_cannot_be_told_is_no_reason_to_end(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    Manager({"NOTIFY_SOCKET": str(tmp_path / "none")}).tell("READY=1")
    assert "READY=1: [Errno 2] No such file" in caplog.text


def test_a_manager_or_journal_that_does_not_read_keeps_nobody(
    listener: socket.socket, caplog: pytest.LogCaptureFixture
) -> None:
    address = listener.getsockname()
    fill(address)
    Manager({"NOTIFY_SOCKET": address}).tell("READY=1")
    assert "READY=1: timed out" in caplog.text
    handler = JournalHandler(address)
    begun = time.monotonic()
    for _ in range(20):
        handler.handle(logging.makeLogRecord({"levelno": logging.INFO, "msg": "a line"}))
    assert time.monotonic() - begun < 10 * PATIENCE, "it waits once, not for each line"
    with contextlib.suppress(BlockingIOError):
        while listener.recv(100, socket.MSG_DONTWAIT):
            pass
    for words, priority in (
        (b"because the journal did not take them: 20\na line\n", b"4"),
        (b"MESSAGE\n\6\0\0\0\0\0\0\0a line\n", b"6"),
    ):
        handler.handle(logging.makeLogRecord({"levelno": logging.INFO, "msg": "a line"}))
        told = listener.recv(1 << 16)
        assert words in told
        assert b"PRIORITY\n\1\0\0\0\0\0\0\0" + priority + b"\n" in told
    handler.close()


@pytest.mark.parametrize(
    ("environment", "seconds"),
    [
        ({"WATCHDOG_USEC": "1500000"}, 1.5),
        ({"WATCHDOG_USEC": "1500000", "WATCHDOG_PID": str(os.getpid())}, 1.5),
        ({"WATCHDOG_USEC": "1500000", "WATCHDOG_PID": str(os.getpid() + 1)}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
    ],
)
def test_the_watchdog_is_meant_for_one_process(environment: dict[str, str], seconds: float | None) -> None:
    assert Manager(environment).watchdog == seconds


def test_a_record_with_its_fields(listener: socket.socket) -> None:
    extra = {"KTASK_NAME": "vm0", "KTASK_UID": 1000}
    fields = logged(listener, listener.getsockname(), logging.WARNING, "one\ntwo \udc80", **extra)
    assert fields == {
        b"MESSAGE": b"one\ntwo \\udc80",
        b"PRIORITY": b"4",
        b"SYSLOG_IDENTIFIER": b"ktaskfs",
        b"KTASK_NAME": b"vm0",
        b"KTASK_UID": b"1000",
    }


@pytest.mark.parametrize(("level", "priority"), [(logging.INFO, b"6"), (logging.ERROR, b"3"), (35, b"6")])
def test_priorities(listener: socket.socket, level: int, priority: bytes) -> None:
    assert logged(listener, listener.getsockname(), level, "text")[b"PRIORITY"] == priority


def test_without_a_journal_it_goes_to_stderr(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    handler = JournalHandler(str(tmp_path / "none"))
    handler.handle(logging.makeLogRecord({"levelno": logging.ERROR, "msg": "one\ntwo"}))
    handler.close()
    assert capfd.readouterr().err == "<3>one\n<3>two\n"


def test_the_journal_is_known_by_its_inode() -> None:
    status = os.fstat(2)
    assert stderr_is_journal({"JOURNAL_STREAM": f"{status.st_dev}:{status.st_ino}"})
    assert not stderr_is_journal({"JOURNAL_STREAM": "1:1"})
    assert not stderr_is_journal({})
