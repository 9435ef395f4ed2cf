"""The first request of a mount, FUSE_INIT, with an answer that keeps the kernel's requests small.

libfuse has a buffer of 1 MiB for each request under way, and neither it nor pyfuse3 has an option for less. What was
written to a buffer stays in memory. So a user could make the daemon take gigabytes, by writes of 1 MiB.
"""

from __future__ import annotations

import errno
import fcntl
import os
import select
import socket
import struct
from typing import TYPE_CHECKING, Final

import pyfuse3

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

PAGES_MAX: Final = 17
"""Pages in one request: so many that the first request of a command shows whether it is longer than vfs.COMMAND_MAX."""
REQUEST_MAX: Final = 1 << 20
_MAX_WRITE: Final = 36
_MAX_PAGES: Final = 44
"""Offsets in the answer: struct fuse_out_header and struct fuse_init_out (linux/fuse.h)."""


async def negotiate(device: int) -> None:
    """Have libfuse answer FUSE_INIT, and pass the answer on with PAGES_MAX. Call it before ``pyfuse3.main``.

    Meanwhile ``device``, which libfuse serves, is a socket. Its end ends ``pyfuse3.main``, which reports it as EIO.
    """
    kernel = fcntl.fcntl(device, fcntl.F_DUPFD_CLOEXEC, 0)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        poll = select.poll()
        poll.register(kernel, select.POLLIN)
        if not poll.poll(0):  # somebody else has answered it
            return
        with ours, theirs:
            ours.send(os.read(kernel, REQUEST_MAX))
            ours.shutdown(socket.SHUT_WR)
            os.dup2(theirs.fileno(), device, inheritable=False)
            await _until_end(lambda: pyfuse3.main(max_tasks=1))
            os.write(kernel, _limited(ours.recv(REQUEST_MAX, socket.MSG_DONTWAIT)))
    finally:
        os.dup2(kernel, device, inheritable=False)
        os.close(kernel)


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
