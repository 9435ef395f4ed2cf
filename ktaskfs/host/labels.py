"""Labels of AppArmor and SELinux, and taking over another process's label.

Only one of the two is active at a time. apparmor(7), aa_change_profile(2), setcon(3), proc_pid_attr(5).
"""

from __future__ import annotations

import errno
import os
import re
from typing import Final, NamedTuple

from ktaskfs.errors import NotPermitted
from ktaskfs.host.files import read_file

APPARMOR: Final = "apparmor/current"
OTHER: Final = "current"
"""The file of SELinux, if active, and of other modules with labels, such as Smack."""
_READ_SIZE: Final = 1 << 16
"""The kernel writes at most a page."""
_MODE: Final = re.compile(r" \(([a-z]+|-)\)$")
"""The modes that AppArmor appends: enforce, complain, kill, mixed, unconfined, and others in later versions."""
_STACK: Final = "//&"


class Label(NamedTuple):
    """``text`` of the file ``module``, APPARMOR or OTHER, below /proc/PID/attr."""

    module: str
    text: str

    @property
    def restrictions(self) -> frozenset[str]:
        """The restricting part of the label: the profiles of a stack, or the context; empty if nothing restricts.

        Unrestricted are AppArmor's unconfined, a profile in that mode, and SELinux domains whose names begin with
        unconfined_, which by convention are allowed everything.
        """
        if self.module == OTHER:
            domain = f"{self.text}:::".split(":")[2]
            return frozenset() if domain.startswith("unconfined_") else frozenset({self.text})
        if self.text.endswith(" (unconfined)"):
            return frozenset()
        parts = self._name.split(_STACK)
        return frozenset(each for each in parts if each.rpartition(":")[2] != "unconfined")

    @property
    def inside(self) -> frozenset[str]:
        """``restrictions`` as visible to the process itself under AppArmor: only those of the innermost namespace."""
        name = self._name
        if f"{_STACK}{name}".count(f"{_STACK}:"):  # the kernel lists outer ones first, and names each namespace once
            name = f"{_STACK}{name}".rpartition(f"{_STACK}:")[2].partition(":")[2]
        return Label(self.module, name).restrictions

    @property
    def request(self) -> bytes:
        """The text that a process writes to take it over."""
        text = self.text if self.module == OTHER else f"changeprofile {self._name}"
        return os.fsencode(text)

    @property
    def _name(self) -> str:
        return _MODE.sub("", self.text)

    def __str__(self) -> str:
        name = self.text if self.module == OTHER else self._name
        shown = "".join(each if each.isprintable() else "?" for each in name)
        return f"{'security context' if self.module == OTHER else 'AppArmor profile'} {shown}"


def read_label(process: int) -> Label | None:
    """The label that restricts a process, of which ``process`` is a descriptor of /proc/PID; None if none does.

    Raises OSError, EACCES for a label that this process may not see.
    """
    for module in (APPARMOR, OTHER):
        try:
            label = Label(module, _text(read_file(f"attr/{module}", process)))
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.EINVAL):  # the module is not in this kernel, or not active
                continue
            raise
        return label if label.restrictions else None
    return None


class NewLabel(NamedTuple):
    """A label for this process to take over; ``attributes`` is an O_PATH descriptor of its /proc/PID/attr."""

    label: Label
    attributes: int

    @classmethod
    def open(cls, label: Label) -> NewLabel:
        """Call it before the root directory changes. Raises OSError."""
        return cls(label, os.open("/proc/self/attr", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))

    def take(self) -> None:
        """Take the label over permanently, if it differs, and close the descriptor.

        The process must have one thread. Raises NotPermitted (EACCES).
        """
        try:
            fd = self._open()
            try:
                if _read(fd) == self.label.text:
                    return
                os.pwrite(fd, self.label.request, 0)
                if self.label.module == OTHER:
                    return  # SELinux accepts exactly this context or none; the file may be unreadable now
                held = Label(APPARMOR, _read(fd))
            finally:
                os.close(fd)
        except OSError as error:
            raise _refused(self.label, error.strerror) from error
        if held.restrictions != self.label.inside:
            raise _refused(self.label, f"the kernel made it {held}")

    def _open(self) -> int:
        try:
            # The kernel accepts a label only through a descriptor that was opened with the current ids.
            return os.open(self.label.module, os.O_RDWR | os.O_CLOEXEC, dir_fd=self.attributes)
        finally:
            os.close(self.attributes)


def _refused(label: Label, reason: str | None) -> NotPermitted:
    text = f"the worker cannot take over your {label}: {reason}"
    return NotPermitted(f"{text} (an administrator can set label=ignore)", errno=errno.EACCES)


def _read(fd: int) -> str:
    return _text(os.pread(fd, _READ_SIZE, 0))


def _text(content: bytes) -> str:
    return os.fsdecode(content).rstrip("\n\0")
