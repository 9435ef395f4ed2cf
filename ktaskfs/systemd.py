"""What systemd hears from the daemon: its state, as sd_notify(3), and its log, with fields, in the journal.

Both are one datagram to a socket that systemd names; small enough to need no library.
"""

from __future__ import annotations

import logging
import os
import socket
import struct
import sys
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

LOG: Final = logging.getLogger(__name__)
PATIENCE: Final = 0.2
"""Seconds that a word to systemd may take. It may be stopped, or its queue full; nobody else waits for it longer."""
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
"""Fields of the journal that a log call may give with ``extra``; docs/how-to/monitoring.md says what they are."""
PRIORITIES: Final = {logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4, logging.ERROR: 3, logging.CRITICAL: 2}
"""Levels of logging as those of syslog(3)."""


class Manager:
    """The service manager that started this process; nobody listens when it was none that asks for notifications."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._address = environment.get("NOTIFY_SOCKET", "")
        if self._address.startswith("@"):  # an abstract one
            self._address = f"\0{self._address[1:]}"
        meant = environment.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        usec = environment.get("WATCHDOG_USEC", "")
        self.watchdog = int(usec) / 1e6 if meant and usec.isdecimal() and int(usec) else None
        """Seconds within which it wants a sign of life, or None."""
        ours = environment.get("LISTEN_PID") == str(os.getpid())
        self._kept = environment.get("LISTEN_FDNAMES", "").split(":") if ours else []

    @property
    def listens(self) -> bool:
        """Whether anybody is told anything."""
        return bool(self._address)

    def tell(self, *assignments: str) -> None:
        """Send ``NAME=value`` each; see sd_notify(3) for the names. What cannot be sent is logged."""
        if not self._address:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
                sock.settimeout(PATIENCE)
                sock.sendto("\n".join(assignments).encode(), self._address)
        except OSError as error:
            LOG.warning("cannot notify the service manager of %s: %s", assignments[0], error)

    def store(self, fd: int, name: str) -> None:
        """Have the manager keep ``fd`` and hand it to the service's next process; returns when it has it.

        Raises OSError. sd_notify(3), sd_notify_barrier(3).
        """
        done, barrier = os.pipe()
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
            sock.connect(self._address)
            socket.send_fds(sock, [f"FDSTORE=1\nFDNAME={name}".encode()], [fd])
            socket.send_fds(sock, [b"BARRIER=1"], [barrier])
        os.close(barrier)
        os.read(done, 1)  # until the manager has closed its copy
        os.close(done)

    def kept(self, name: str) -> int | None:
        """The descriptor of that name that the manager has handed to this process, if any; sd_listen_fds(3)."""
        if name not in self._kept:
            return None
        fd = _LISTEN_FDS_START + self._kept.index(name)
        os.set_inheritable(fd, False)
        return fd

    def forget(self, name: str) -> None:
        """Have the manager close its copy of what was stored."""
        self.tell("FDSTOREREMOVE=1", f"FDNAME={name}")


def stderr_is_journal(environment: Mapping[str, str]) -> bool:
    """Whether what is written to standard error ends in the journal: systemd.exec(5), JOURNAL_STREAM."""
    status = os.fstat(2)
    return environment.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"


class JournalHandler(logging.Handler):
    """Logs to the journal by its native protocol; to standard error, with a priority, while it cannot be reached."""

    def __init__(self, address: str = JOURNAL) -> None:
        super().__init__()
        self.setFormatter(logging.Formatter())  # or logging.basicConfig() gives it one with the level in words
        self._address = address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        self._socket.settimeout(PATIENCE)

    def emit(self, record: logging.LogRecord) -> None:
        text = self.format(record)
        priority = PRIORITIES.get(record.levelno, 6)
        fields = {"MESSAGE": text, "PRIORITY": priority, "SYSLOG_IDENTIFIER": "ktaskfs"}
        fields |= {name: getattr(record, name) for name in FIELDS if hasattr(record, name)}
        try:
            self._socket.sendto(b"".join(_field(name, str(value)) for name, value in fields.items()), self._address)
        except TimeoutError:
            return  # standard error ends there as well, and would wait for ever
        except OSError:  # the journal is being restarted, or the text is longer than a datagram may be
            for line in text.splitlines():
                print(f"<{priority}>{line}", file=sys.stderr, flush=True)

    def close(self) -> None:
        self._socket.close()
        super().close()


def _field(name: str, text: str) -> bytes:
    """A field in the form that may hold newlines: https://systemd.io/JOURNAL_NATIVE_PROTOCOL/."""
    value = text.encode(errors="backslashreplace")
    return b"%s\n%s%s\n" % (name.encode(), struct.pack("<Q", len(value)), value)
