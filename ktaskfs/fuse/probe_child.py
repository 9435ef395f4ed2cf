"""A child of the daemon that probes the new mount: whether it answers, and for descriptors that pin its static names.

If a thread of the daemon did so and the answer never came, even SIGKILL could not end the daemon: the thread would wait
for an answer of its own process (fs/fuse/dev.c, request_wait_answer).

The daemon forks it before it has threads and a mount: a new Python takes longer to start than to do this. The child is
in the daemon's process group, on which an automount depends (autofs_oz_mode).
"""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING, Final

import setproctitle

from ktaskfs.descriptors import close_all_but
from ktaskfs.mounts import clone_mount

if TYPE_CHECKING:
    from collections.abc import Sequence

ANSWERS: Final = b"."
"""Its first message if the mount answers; else the reason."""
DESCRIPTORS_MAX: Final = 250
"""Descriptors in one message, a little less than SCM_MAX_FD."""
MESSAGE_MAX: Final = 65536
_PINNED: Final = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC


def fork_probe() -> tuple[int, socket.socket]:
    """Fork the child from a process with one thread. Raises OSError.

    Returns its pid, and a socket on which it waits for one message of ``asking``. It ends with the socket.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        try:
            pid = os.fork()
        except OSError:
            ours.close()
            raise
        if pid == 0:
            try:
                _answer(theirs)
            finally:  # never return, whatever fails
                os._exit(0)
    return pid, ours


def asking(mountpoint: str, file: str, names: Sequence[str]) -> bytes:
    """The message that asks for a probe of ``file`` of the mount, and for descriptors of ``names``."""
    return b"\0".join(map(os.fsencode, (mountpoint, file, *names)))


def _answer(daemon: socket.socket) -> None:
    """In the child: keep nothing of the daemon but ``daemon``, and answer."""
    close_all_but({daemon.fileno()})
    os.chdir("/")
    setproctitle.setproctitle("ktaskfs: probe")
    asked = daemon.recv(MESSAGE_MAX)
    if not asked:  # it was not mounted
        return
    mountpoint, file, *names = map(os.fsdecode, asked.split(b"\0"))
    try:
        with open(os.path.join(mountpoint, file), "rb") as text:
            text.read()
        root = _second_mount(mountpoint) if names else None
        daemon.send(ANSWERS)  # from now on nothing here makes the mount busy
        found = [] if root is None else [root, *(os.open(name, _PINNED, dir_fd=root) for name in names)]
    except OSError as error:
        daemon.send(os.fsencode(error.strerror or str(error)))
        return
    for first in range(0, len(found), DESCRIPTORS_MAX):
        socket.send_fds(daemon, [b"."], found[first : first + DESCRIPTORS_MAX])


def _second_mount(mountpoint: str) -> int | None:
    """A descriptor of a second, detached mount of ``mountpoint``; None if that is not permitted.

    While the daemon holds descriptors of names in it, the kernel caches these names, and walks to them without a
    request and without a lock. It does not make the first mount busy.
    """
    try:
        return clone_mount(mountpoint)
    except PermissionError:
        return None
