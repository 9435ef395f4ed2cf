"""The first request of a mount, FUSE_INIT, with an answer that keeps the kernel's requests small.

libfuse has a buffer of 1 MiB for each pending request, and neither it nor pyfuse3 has an option for less. Written parts
of a buffer stay in memory. So a user could make the daemon take gigabytes by writes of 1 MiB.

The kernel asks once. A server that takes over a mount lets libfuse answer the request to the first server, and
withholds the answer if it is the same.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import struct
from typing import TYPE_CHECKING, Final, NamedTuple

import pyfuse3

from ktaskfs.errors import KtaskfsError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

PAGES_MAX: Final = 17
"""Pages in one request: enough that the first request shows whether a command is longer than vfs.COMMAND_MAX."""
REQUEST_MAX: Final = 1 << 20
_MAX_WRITE: Final = 36
_MAX_PAGES: Final = 44
"""Offsets in the answer: struct fuse_out_header and struct fuse_init_out (linux/fuse.h)."""
_INIT: Final = 26
_OPCODE: Final = 4
_FLAGS: Final = 52
_FLAGS2: Final = 56
"""Offsets in a request: struct fuse_in_header and struct fuse_init_in."""
_INIT_EXT: Final = 1 << 30
_HAS_RESEND: Final = 1 << (39 - 32)
_RESEND: Final = struct.pack("=IiQ", 16, 7, 0)
"""FUSE_NOTIFY_RESEND as a struct fuse_out_header, since Linux 6.9."""


class CannotTakeOver(KtaskfsError):
    """This server cannot take over the mount from its previous server (EBUSY)."""

    default_errno = errno.EBUSY


class Agreement(NamedTuple):
    """The kernel's request at the mount, its answer, and the kernel's knowledge since.

    Servers with the same ``tree`` give the same numbers and attributes to static inodes. ``opened`` is an upper bound
    of opened files and directories.
    """

    request: bytes
    answer: bytes
    tree: str
    opened: int = 0

    def to_text(self) -> str:
        """The whole negotiation as ASCII text."""
        return f"{self.request.hex()} {self.answer.hex()} {self.tree} {self.opened}\n"

    @classmethod
    def from_text(cls, text: str) -> Agreement | None:
        """The inverse of ``to_text``; None for anything else."""
        try:
            request, answer, tree, opened = text.split()
            return cls(bytes.fromhex(request), bytes.fromhex(answer), tree, int(opened))
        except ValueError:
            return None

    @property
    def resends(self) -> bool:
        """Whether the kernel can resend requests that a dead server read but did not answer. Otherwise they would
        hang."""
        if len(self.request) < _FLAGS2 + 4:
            return False
        flags, flags2 = struct.unpack_from("=II", self.request, _FLAGS)
        return bool(flags & _INIT_EXT and flags2 & _HAS_RESEND)


async def negotiate(device: int, tree: str, earlier: Agreement | None) -> Agreement:
    """Let libfuse answer FUSE_INIT, and pass the answer on with PAGES_MAX. Call it before ``pyfuse3.main``.

    If an ``earlier`` server has answered it already, libfuse still gets the request, and the kernel is told to resend
    requests that the server left unanswered. Raises CannotTakeOver, also for another ``tree``, and OSError.

    During the call ``device``, which libfuse serves, is a socket. Its end ends ``pyfuse3.main``, which reports it as
    EIO.
    """
    kernel = fcntl.fcntl(device, fcntl.F_DUPFD_CLOEXEC, 0)
    try:
        pending = _read_pending(kernel)
        if len(pending) >= _OPCODE + 4 and struct.unpack_from("=I", pending, _OPCODE) == (_INIT,):
            agreement = Agreement(pending, await _answer(device, pending), tree)
            os.write(kernel, agreement.answer)
            return agreement
        try:
            if earlier is None or not earlier.resends:
                raise CannotTakeOver("cannot take over the mount: its previous server is unknown")
            if earlier.tree != tree or await _answer(device, earlier.request) != earlier.answer:
                raise CannotTakeOver("cannot take over the mount: its server had another version or other options")
            return earlier
        finally:  # nobody can kill the caller of a lost request, so resend even the one just read
            with contextlib.suppress(OSError):  # an older kernel
                os.write(kernel, _RESEND)
    finally:
        os.dup2(kernel, device, inheritable=False)
        os.close(kernel)


def _read_pending(kernel: int) -> bytes:
    """The next request, if any: its caller may have been killed."""
    os.set_blocking(kernel, False)
    try:
        return os.read(kernel, REQUEST_MAX)
    except BlockingIOError:
        return b""
    finally:
        os.set_blocking(kernel, True)


async def _answer(device: int, request: bytes) -> bytes:
    """libfuse's answer with the limits of this module."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        ours.send(request)
        ours.shutdown(socket.SHUT_WR)
        os.dup2(theirs.fileno(), device, inheritable=False)
        await _until_end(lambda: pyfuse3.main(max_tasks=1))
        return _limited(ours.recv(REQUEST_MAX, socket.MSG_DONTWAIT))


async def _until_end(serve: Callable[[], Awaitable[None]]) -> None:
    try:
        await serve()
    except* OSError as errors:
        if any(isinstance(each, OSError) and each.errno != errno.EIO for each in errors.exceptions):
            raise


def _limited(answer: bytes) -> bytes:
    limited = bytearray(answer)
    if len(answer) >= _MAX_PAGES + 2:
        struct.pack_into("=I", limited, _MAX_WRITE, PAGES_MAX * os.sysconf("SC_PAGE_SIZE"))
        struct.pack_into("=H", limited, _MAX_PAGES, PAGES_MAX)
    return bytes(limited)
