"""The messages between daemon, spawner and workers."""

from __future__ import annotations

import errno
import json
import os
import socket
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ktaskfs.worker import protocol
from ktaskfs.worker.protocol import Exited, Forked, Ready, StartRequest, WorkerRefused, decode, encode

if TYPE_CHECKING:
    from ktaskfs.worker.protocol import Message

NUMBERS = st.integers(-(2**70), 2**70)
MESSAGES = st.one_of(
    st.builds(Forked, NUMBERS, NUMBERS, NUMBERS),
    st.builds(Exited, NUMBERS, NUMBERS),
    st.builds(Ready, NUMBERS, st.dictionaries(st.text(), NUMBERS), st.dictionaries(st.text(), st.text())),
    st.builds(WorkerRefused, NUMBERS, st.text()),
    st.builds(
        StartRequest,
        name=st.text(),
        operation=st.text(),
        parameters=st.dictionaries(st.text(), st.text()),
        baseline=st.none() | st.dictionaries(st.text(), NUMBERS),
        remaining=st.none() | st.lists(st.lists(NUMBERS, min_size=3, max_size=3)),
        identity=st.dictionaries(st.text(), NUMBERS),
        load_bal_shift=NUMBERS,
        ticket=NUMBERS,
    ),
)


@given(MESSAGES)
def test_every_message_arrives_as_it_was_sent(message: Message) -> None:
    assert decode(encode(message)) == message


@given(
    st.binary() | st.recursive(st.none() | st.integers() | st.text(), st.lists).map(lambda v: json.dumps(v).encode())
)
def test_garbage_is_refused_with_an_error_that_is_expected(data: bytes) -> None:
    with pytest.raises((ValueError, TypeError, KeyError)):
        decode(data)


@pytest.mark.parametrize(
    "value",
    [
        ["Ready", {"total": "1"}],
        ["Ready", {"total": True}],
        ["Ready", {"total": 1.0}],
        ["Ready", {}],
        ["Ready", {"total": 1, "more": 2}],
        ["Ready", [1]],
        ["Ready", {"total": 1, "baseline": {}, "defaults": ["x"]}],
        ["WorkerRefused", {"errno": "ENOENT", "message": "m"}],
        ["WorkerRefused", {"errno": 2, "message": None}],
        ["Forked", {"ticket": None, "pid": 1, "errno": 0}],
        ["Nothing", {}],
        [["Ready"], {}],
    ],
    ids=str,
)
def test_fields_that_do_not_fit(value: object) -> None:
    with pytest.raises((TypeError, KeyError)):
        decode(json.dumps(value).encode())


@pytest.mark.parametrize(
    ("number", "known"), [(2, 2), (4095, 4095), (0, errno.EIO), (-1, errno.EIO), (4096, errno.EIO)]
)
def test_a_refusal_becomes_an_error_that_a_caller_can_have(number: int, known: int) -> None:
    error = WorkerRefused(number, "no\n\x1b[31mluck" + "x" * 10_000).error()
    assert error.errno == known
    assert error.message.startswith("no\\012\\033[31mluckxxx")
    assert len(error.message) == protocol.WORDS_MAX


def test_descriptors_come_close_on_exec() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs, open(os.devnull) as first, open("/dev/zero") as second:
        packed = protocol.packed_fds([first.fileno(), second.fileno()])
        ours.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, packed)])
        _, ancillary, _, _ = theirs.recvmsg(10, socket.CMSG_SPACE(4 * protocol.FDS_MAX))
        fds = protocol.received_fds(ancillary)
    try:
        assert [os.readlink(f"/proc/self/fd/{fd}") for fd in fds] == [os.devnull, "/dev/zero"]
        assert not any(os.get_inheritable(fd) for fd in fds)
    finally:
        for fd in fds:
            os.close(fd)
