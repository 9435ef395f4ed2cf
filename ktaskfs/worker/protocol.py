"""The messages between the daemon, the spawner and a worker.

Daemon and spawner speak over one SEQPACKET socket, a JSON object a message, descriptors beside it. A worker has a
channel of its own to the daemon, until its work begins: it answers whether it can start, and waits for GO. The end
of the channel instead of GO (the daemon died, or gave the start up) means that it must not begin.
"""

from __future__ import annotations

import array
import json
import os
import socket
from dataclasses import asdict, dataclass
from errno import EIO
from typing import TYPE_CHECKING, Any, Final

from ktaskfs.errors import KtaskfsError, TargetError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

GO: Final = b"g"
MESSAGE_MAX: Final = 1 << 19
"""Bytes of one message. A command has at most 64 KiB, and JSON may need six bytes for one."""
FDS_MAX: Final = 8
ERRNO_MAX: Final = 4096
"""Where the kernel's error numbers end (MAX_ERRNO)."""
WORDS_MAX: Final = 4096
"""Characters of a worker's refusal that are passed on."""


@dataclass(frozen=True)
class StartRequest:
    """Fork a worker. Beside it travel the descriptors of the page, the channel, the caller's root and directory.

    parameters: canonical texts.
    remaining:  (start, size, nid) of each range of a resumed task, None for a new task.
    baseline:   the one in the Ready of an earlier run.
    identity:   the fields of the caller's ``ktaskfs.host.credentials.Identity``.
    ticket:     a number for each request, which the answers repeat. The task's name would not do: one worker of a task
                may still be ending when the next one starts.
    """

    name: str
    operation: str
    parameters: Mapping[str, str]
    remaining: Sequence[tuple[int, int, int]] | None
    baseline: Mapping[str, Any] | None
    identity: Mapping[str, Any]
    load_bal_shift: int
    ticket: int = 0


@dataclass(frozen=True)
class Forked:
    """The answer to a StartRequest; beside it travels a pidfd. ``errno`` is 0, or why there is no process."""

    ticket: int
    pid: int
    errno: int


@dataclass(frozen=True)
class Exited:
    """A worker was reaped; ``status`` is that of waitpid(2)."""

    ticket: int
    status: int


@dataclass(frozen=True)
class Ready:
    """A worker's answer: it can begin on ``total`` units; ``baseline`` has the fields of a Baseline."""

    total: int
    baseline: Mapping[str, Any]


@dataclass(frozen=True)
class Refused:
    """A worker's answer: it cannot begin, nothing was touched, and it is about to end.

    The worker is its caller's process: its words are shown, and not trusted.
    """

    errno: int
    message: str

    def error(self) -> KtaskfsError:
        known = self.errno if 0 < self.errno < ERRNO_MAX else EIO
        text = "".join(each if each.isprintable() else "?" for each in self.message[:WORDS_MAX])
        return TargetError(text, errno=known)


Message = StartRequest | Forked | Exited | Ready | Refused
_BY_NAME: Final[Mapping[str, type[Any]]] = {
    each.__name__: each for each in (StartRequest, Forked, Exited, Ready, Refused)
}


def encode(message: Message) -> bytes:
    """``message`` as bytes."""
    return json.dumps([type(message).__name__, asdict(message)]).encode()


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
    if type(getattr(message, "message", "")) is not str:
        raise TypeError("message is not text")
    return message


def send(sock: socket.socket, message: Message, fds: Sequence[int] = ()) -> None:
    """One message, from blocking code. Raises OSError."""
    socket.send_fds(sock, [encode(message)], fds)


def packed_fds(fds: Sequence[int]) -> bytes:
    """Descriptors as the data of an SCM_RIGHTS message."""
    return array.array("i", fds).tobytes()


def received_fds(ancillary: Sequence[tuple[int, int, bytes]]) -> list[int]:
    """The descriptors that came beside a message, as recvmsg(2) gives them; they are close-on-exec."""
    fds = array.array("i")
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
    for fd in fds:
        os.set_inheritable(fd, False)
    return list(fds)
