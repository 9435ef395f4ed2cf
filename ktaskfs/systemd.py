"""Messages to systemd: the state of the daemon, as with sd_notify(3), and its log, with fields, in the journal.

Both are datagrams to a socket; small enough to need no library.
"""

from __future__ import annotations

import errno
import logging
import os
import select
import socket
import struct
from typing import TYPE_CHECKING, Final

from ktaskfs.line_output import LineOutput

if TYPE_CHECKING:
    from collections.abc import Mapping

LOG: Final = logging.getLogger(__name__)
PATIENCE: Final = 0.2
"""Maximum seconds for a message to systemd, which may be stopped, or have a full queue."""
BARRIER_MAX: Final = 30.0
"""Maximum seconds until systemd has carried out a message; it may be busy, as at boot."""
_LISTEN_FDS_START: Final = 3
JOURNAL: Final = "/run/systemd/journal/socket"
FIELDS: Final = (
    "KTASK_NAME",
    "KTASK_OPERATION",
    "KTASK_PATH",
    "KTASK_UID",
    "KTASK_STATE",
    "KTASK_PID",
    "KTASK_DONE",
    "KTASK_TOTAL",
    "KTASK_USEC",
    "KTASK_TUNABLE",
    "ERRNO",
)
"""Journal fields that a log call may pass in ``extra``; docs/how-to/monitoring.md describes them."""
PRIORITIES: Final = {logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4, logging.ERROR: 3, logging.CRITICAL: 2}
"""Levels of logging as priorities of syslog(3)."""


class Manager:
    """The service manager of this process, if it asks for notifications."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._address = environment.get("NOTIFY_SOCKET", "")
        if self._address.startswith("@"):  # an abstract one
            self._address = f"\0{self._address[1:]}"
        meant = environment.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        usec = environment.get("WATCHDOG_USEC", "")
        self.watchdog = int(usec) / 1e6 if meant and usec.isdecimal() and int(usec) else None
        """The watchdog interval in seconds, or None."""
        ours = environment.get("LISTEN_PID") == str(os.getpid())
        names = environment.get("LISTEN_FDNAMES", "") if ours else ""
        self._kept = names.split(":") if names else []
        for fd in range(_LISTEN_FDS_START, _LISTEN_FDS_START + len(self._kept)):
            os.set_inheritable(fd, False)  # also those that nobody asks for

    @property
    def listens(self) -> bool:
        """Whether the manager listens."""
        return bool(self._address)

    def tell(self, *assignments: str) -> None:
        """Send assignments ``NAME=value``; see sd_notify(3) for the names. A failure is logged."""
        if not self._address:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
                sock.settimeout(PATIENCE)
                sock.sendto("\n".join(assignments).encode(), self._address)
        except OSError as error:
            LOG.warning("cannot notify the service manager of %s: %s", assignments[0], error)

    def store(self, fd: int, name: str) -> None:
        """Store ``fd`` in the manager for the service's next process; returns when the manager has it.

        Raises OSError.
        """
        self._tell_for_sure(f"FDSTORE=1\nFDNAME={name}", [fd])

    def kept(self, name: str) -> int | None:
        """The stored descriptor of that name, if the manager passed it to this process; sd_listen_fds(3)."""
        return _LISTEN_FDS_START + self._kept.index(name) if name in self._kept else None

    def forget(self, name: str) -> None:
        """Remove the stored descriptor, if any, from the manager; returns when that is done. Raises OSError."""
        if self._address:
            self._tell_for_sure(f"FDSTOREREMOVE=1\nFDNAME={name}", [])

    def _tell_for_sure(self, text: str, fds: list[int]) -> None:
        """Send ``text`` and ``fds``; returns when the manager has carried it out: sd_notify_barrier(3).

        Raises OSError; ETIMEDOUT if the manager does not answer.
        """
        done, barrier = os.pipe()
        try:
            try:
                with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
                    sock.settimeout(BARRIER_MAX)
                    sock.connect(self._address)
                    socket.send_fds(sock, [text.encode()], fds)
                    socket.send_fds(sock, [b"BARRIER=1"], [barrier])
            finally:
                os.close(barrier)
            closed = select.poll()
            closed.register(done, 0)
            if not closed.poll(BARRIER_MAX * 1000):  # until the manager has closed its copy
                raise TimeoutError
        except TimeoutError:  # that of a socket has no errno
            raise TimeoutError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT)) from None
        finally:
            os.close(done)


def stderr_is_journal(environment: Mapping[str, str]) -> bool:
    """Whether standard error leads to the journal: systemd.exec(5), JOURNAL_STREAM."""
    status = os.fstat(2)
    return environment.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"


class JournalHandler(logging.Handler):
    """Logs to the journal by its native protocol; to standard error, with a priority, while it cannot be reached.

    A journal that takes nothing for PATIENCE loses lines until it takes one again, which says how many were dropped,
    and is at least a warning: any user can make the daemon log something, and each line that waits holds up the event
    loop.
    """

    def __init__(self, address: str = JOURNAL) -> None:
        super().__init__()
        self.setFormatter(logging.Formatter())  # otherwise logging.basicConfig() adds the level in words
        self._address = address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        self._dropped = 0
        self._standard_error = LineOutput(2)

    def emit(self, record: logging.LogRecord) -> None:
        before = f"lines dropped, because the journal did not take them: {self._dropped}\n" if self._dropped else ""
        text = before + self.format(record)
        priority = PRIORITIES.get(record.levelno, 6)
        if before:
            priority = min(priority, PRIORITIES[logging.WARNING])
        fields = {"MESSAGE": text, "PRIORITY": priority, "SYSLOG_IDENTIFIER": "ktaskfs"}
        fields |= {name: getattr(record, name) for name in FIELDS if hasattr(record, name)}
        self._socket.settimeout(0 if self._dropped else PATIENCE)
        try:
            self._socket.sendto(b"".join(_field(name, str(value)) for name, value in fields.items()), self._address)
        except (TimeoutError, BlockingIOError):  # standard error leads there, too, and would wait forever
            self._dropped += 1
            return
        except OSError:  # the journal is being restarted, or the text is longer than a datagram may be
            for line in text.splitlines():
                self._standard_error.write(f"<{priority}>{line}")
        self._dropped = 0

    def close(self) -> None:
        self._socket.close()
        self._standard_error.close()
        super().close()


def _field(name: str, text: str) -> bytes:
    """A field in the format for values with newlines: https://systemd.io/JOURNAL_NATIVE_PROTOCOL/."""
    value = text.encode(errors="backslashreplace")
    return b"%s\n%s%s\n" % (name.encode(), struct.pack("<Q", len(value)), value)
