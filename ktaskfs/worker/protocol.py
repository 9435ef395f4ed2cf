"""The messages between the daemon, the spawner and a worker.

Daemon and spawner use one SEQPACKET socket, with one JSON object per message, and descriptors. A worker has its
own channel to the daemon until its work begins: it reports whether it can start, and waits for GO. If the channel
ends without GO (the daemon died, or gave the start up), it must not begin.
"""

from __future__ import annotations

import array
import json
import os
import socket
from errno import EIO
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from ktaskfs.errors import ERRNO_MAX, KtaskfsError, TargetError
from ktaskfs.units import printable

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

GO: Final = b"g"
MESSAGE_MAX: Final = 1 << 19
"""Bytes of one message. A command has at most 64 KiB, and JSON may need six bytes for one."""
ANSWER_MAX: Final = 1 << 16
"""Bytes of an answer of a worker or the spawner. Allocating more takes the receiver longer than the rest."""
FDS_MAX: Final = 8
UNHEARD: Final = 77
"""Exit status of a worker whose caller's label keeps it from the channel (EX_NOPERM of sysexits.h)."""
WORDS_MAX: Final = 4096
"""Maximum characters of a worker's refusal."""


class StartRequest(NamedTuple):
    """Fork a worker. The message carries the descriptors of the page, the channel, the caller's root and directory.

    parameters: canonical texts.
    remaining:  (start, size, nid) of each range of a resumed task, None for a new task.
    baseline:   from the Ready of an earlier run; without ``remaining``, nothing of that run counts any more.
    identity:   the fields of the caller's ``ktaskfs.host.credentials.Identity``.
    ticket:     a number for each request, repeated in the answers. The task's name would be ambiguous while an old
                worker of the task ends.
    follows:    another request follows as soon as this worker is ready.
    """

    name: str
    operation: str
    parameters: Mapping[str, str]
    remaining: Sequence[tuple[int, int, int]] | None
    baseline: Mapping[str, Any] | None
    identity: Mapping[str, Any]
    load_bal_shift: int
    ticket: int = 0
    follows: bool = False


class LookRequest(NamedTuple):
    """Fork a process that finds the holders of huge pages. The message carries a pipe, and the caller's root and
    directory.

    The process writes a Found or a WorkerRefused into the pipe, and ends. ``identity`` and ``ticket`` are as in a
    StartRequest.
    """

    identity: Mapping[str, Any]
    ticket: int = 0


class TouchRequest(NamedTuple):
    """Fork a process that touches files of the mount. The message carries the root of the mount and a socket.

    ``ticket`` is as in a StartRequest.
    """

    ticket: int = 0


class Found(NamedTuple):
    """The findings of a scan, as text for people and for programs. They come from the caller's process."""

    table: str
    json: str


class Forked(NamedTuple):
    """The answer to a request to fork, with a pidfd. ``errno`` is 0, or the reason of the failure."""

    ticket: int
    pid: int
    errno: int


class Exited(NamedTuple):
    """A worker was reaped; ``status`` is that of waitpid(2)."""

    ticket: int
    status: int


class Ready(NamedTuple):
    """A worker's answer: it can begin on ``total`` units.

    baseline: the fields of a Baseline.
    defaults: texts of parameters whose default depends on the target.
    """

    total: int
    baseline: Mapping[str, Any]
    defaults: Mapping[str, str]


class WorkerRefused(NamedTuple):
    """A worker's answer: it cannot begin, has touched nothing, and ends.

    The caller controls the worker, so the text is shown but not trusted.
    """

    errno: int
    message: str

    def error(self) -> KtaskfsError:
        known = self.errno if 0 < self.errno < ERRNO_MAX else EIO
        return TargetError(printable(self.message)[:WORDS_MAX], errno=known)


ForkRequest = StartRequest | LookRequest | TouchRequest
Message = ForkRequest | Found | Forked | Exited | Ready | WorkerRefused
_BY_NAME: Final[Mapping[str, type[Any]]] = {
    each.__name__: each
    for each in (StartRequest, LookRequest, TouchRequest, Found, Forked, Exited, Ready, WorkerRefused)
}


def encode(message: Message) -> bytes:
    """``message`` as bytes."""
    return json.dumps([type(message).__name__, message._asdict()]).encode()


def decode(data: bytes) -> Message:
    """The message in ``data``; raises ValueError, TypeError or KeyError for anything else."""
    try:
        name, fields = json.loads(data)
    except RecursionError:
        raise ValueError("nested too deep") from None
    message: Message = _BY_NAME[name](**fields)
    for each in ("ticket", "pid", "status", "errno", "total"):
        if type(getattr(message, each, 0)) is not int:
            raise TypeError(f"{each} is not a number")
    for each in ("message", "table", "json"):
        if type(getattr(message, each, "")) is not str:
            raise TypeError(f"{each} is not text")
    if type(getattr(message, "defaults", {})) is not dict:
        raise TypeError("defaults are not named")
    return message


def send(sock: socket.socket, message: Message, fds: Sequence[int] = ()) -> None:
    """One message, from blocking code. Raises OSError."""
    socket.send_fds(sock, [encode(message)], fds)


def receive(sock: socket.socket) -> tuple[bytes, list[int], bool]:
    """The next message, empty at the end of the socket, its descriptors, and whether some are missing.

    Raises OSError. It allocates only after a message has arrived, and only its size.
    """
    size = sock.recv_into(bytearray(1), 1, socket.MSG_PEEK | socket.MSG_TRUNC)
    data, fds, flags, _ = socket.recv_fds(sock, min(size, MESSAGE_MAX), FDS_MAX)
    return data, fds, bool(flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC))


def packed_fds(fds: Sequence[int]) -> bytes:
    """Descriptors as the data of an SCM_RIGHTS message."""
    return array.array("i", fds).tobytes()


def received_fds(ancillary: Sequence[tuple[int, int, bytes]]) -> list[int]:
    """The descriptors of a message from recvmsg(2); they are close-on-exec."""
    fds = array.array("i")
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
    for fd in fds:
        os.set_inheritable(fd, False)
    return list(fds)
