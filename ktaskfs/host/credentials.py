"""The identity of a caller, read from /proc; ``ktaskfs.host.becoming`` turns a process into one.

A pid alone is never trusted, because it may be reused before the lookup. Everything is read through one
descriptor of /proc/PID, which stays with that process and fails with ESRCH after its end, and the filesystem uid
and gid must equal those in the kernel's request.
"""

from __future__ import annotations

import array
import contextlib
import errno
import os
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from ktaskfs.errors import KtaskfsError, NotPermitted, TargetError
from ktaskfs.host.cgroups import Group, parse_groups
from ktaskfs.host.files import read_file
from ktaskfs.host.labels import Label, read_label

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

GROUPS_MAX: Final = 1024
"""Maximum supplementary groups of a caller: more than directory services give. Each open control file keeps them, and
root of a user namespace can have 65536."""
_READ_MAX: Final = 1 << 20
_STATUS_MAX: Final = 64 << 10
"""Bytes read of /proc/PID/status: with GROUPS_MAX groups it has a quarter of that."""
_INFINITY_TEXT: Final = b"unlimited"


class Identity(NamedTuple):
    """The properties of a process that the kernel's permission checks use; plain numbers, for a message.

    ``start_time`` is in clock ticks since boot (field 22 of /proc/PID/stat): with ``pid`` it identifies a process
    until the next boot. The capabilities are bit masks for this user namespace: 0 for a process in another one,
    whose ``inside`` has its effective, permitted and bounding capabilities there. ``file_size_max`` is the
    soft RLIMIT_FSIZE, -1 for no limit. ``nice``, ``oom_score_adj``, the control groups and the CPUs are not
    permissions, but a task must not be better off than its caller. ``cpus`` is a list as 0-3,8. ``label`` is None
    without a restricting label.
    """

    pid: int
    start_time: int
    uid: int
    gid: int
    groups: Sequence[int]
    effective: int
    permitted: int
    bounding: int
    umask: int
    file_size_max: int
    nice: int
    oom_score_adj: int
    cgroups: tuple[Group, ...]
    cpus: str
    inside: tuple[int, int, int] | None = None
    label: Label | None = None

    def to_fields(self) -> dict[str, Any]:
        """The fields for JSON."""
        return {
            **self._asdict(),
            "groups": list(self.groups),
            "cgroups": [group._asdict() for group in self.cgroups],
            "label": self.label and self.label._asdict(),
        }

    @classmethod
    def from_fields(cls, fields: Mapping[str, Any]) -> Identity:
        """The inverse of ``to_fields``."""
        inside = fields.get("inside")
        cgroups = tuple(Group(**each) for each in fields["cgroups"])
        label = fields.get("label")
        changes = {"groups": array.array("I", fields["groups"]), "cgroups": cgroups, "inside": inside and tuple(inside)}
        return cls(**{**fields, **changes, "label": label and Label(**label)})

    @property
    def capabilities(self) -> tuple[int, int, int]:
        """Effective, permitted and bounding, in the process's own user namespace."""
        return (self.effective, self.permitted, self.bounding) if self.inside is None else self.inside


def close_all(fds: Iterable[int]) -> None:
    """Close descriptors. The last one of a mount that was detached unmounts it, which may take long, or forever."""
    for fd in fds:
        os.close(fd)


class CallerProcess(NamedTuple):
    """A caller's identity, with descriptors of its root, its working directory and, if it differs, its user
    namespace. ``closing`` closes them."""

    identity: Identity
    root: int
    cwd: int
    user_namespace: int | None = None
    closing: Callable[[Sequence[int]], object] = close_all

    @property
    def descriptors(self) -> list[int]:
        """All descriptors, in the order of ``become``."""
        return [self.root, self.cwd, *([] if self.user_namespace is None else [self.user_namespace])]

    def copy(self) -> CallerProcess:
        """A copy with its own descriptors; raises OSError."""
        copies: list[int] = []
        try:
            for fd in self.descriptors:
                copies.append(os.dup(fd))
        except OSError:
            close_all(copies)
            raise
        root, cwd, *rest = copies
        return self._replace(root=root, cwd=cwd, user_namespace=rest[0] if rest else None)

    def close(self) -> None:
        """Close the descriptors."""
        self.closing(self.descriptors)


def _stat_field(stat: bytes, number: int) -> int:
    """Field 4 or later of /proc/PID/stat; the name in field 2 may hold spaces, parentheses and newlines. proc(5)."""
    return int(stat[stat.rindex(b")") + 1 :].split()[number - 3])


def parse_start_time(stat: bytes) -> int:
    """Field 22 of /proc/PID/stat: clock ticks since boot."""
    return _stat_field(stat, 22)


def start_time(pid: int) -> int | None:
    """The start time of the process, in clock ticks since boot; None if there is no such process."""
    try:
        return parse_start_time(read_file(f"/proc/{pid}/stat"))
    except (FileNotFoundError, ProcessLookupError):
        return None


def read_caller(pid: int, uid: int, gid: int) -> CallerProcess:
    """The caller of a request from ``pid`` with filesystem ids ``uid`` and ``gid``, according to the kernel.

    Raises NotPermitted if the process has ended, has other ids, is in more than GROUPS_MAX groups, or if its root and
    working directory are not accessible (another user's process, for an ordinary user's daemon); TargetError if this
    process has no descriptor or memory left.
    """
    with contextlib.ExitStack() as undo:
        process = _open_path(f"/proc/{pid}", None, pid)
        undo.callback(os.close, process)
        with contextlib.ExitStack() as kept:
            user_namespace = _open_user_namespace(process, pid)
            if user_namespace is not None:
                kept.callback(os.close, user_namespace)
            identity = _identity(process, pid, ours=user_namespace is None)
            if (identity.uid, identity.gid) != (uid, gid):
                raise NotPermitted(f"process {pid} is not the writer: its user or group differs")
            root = _open_path("root", process, pid)
            kept.callback(os.close, root)
            caller = CallerProcess(identity, root, _open_path("cwd", process, pid), user_namespace)
            kept.pop_all()
        return caller


def _identity(process: int, pid: int, *, ours: bool) -> Identity:
    label = _label(process, pid)
    text = _read(process, "status", pid, _STATUS_MAX + 1)
    status = _fields(text)
    if "Umask" not in status:  # the process is a zombie: killed after its request
        raise NotPermitted(f"process {pid}, the writer, has ended")
    if len(status["Groups"]) > GROUPS_MAX or len(text) > _STATUS_MAX:
        raise NotPermitted(f"process {pid}, the writer, is in more than {GROUPS_MAX} groups")
    effective, permitted, bounding = (int(status[key][0], 16) for key in ("CapEff", "CapPrm", "CapBnd"))
    inside = None
    if not ours:
        inside = effective, permitted, bounding
        effective = permitted = bounding = 0
    stat = _read(process, "stat", pid)
    return Identity(
        pid=pid,
        start_time=parse_start_time(stat),
        uid=int(status["Uid"][3]),
        gid=int(status["Gid"][3]),
        groups=array.array("I", map(int, status["Groups"])),  # a tuple takes ten times as much
        effective=effective,
        permitted=permitted,
        bounding=bounding,
        umask=int(status["Umask"][0], 8),
        file_size_max=_file_size_max(_read(process, "limits", pid)),
        nice=_stat_field(stat, 19),
        oom_score_adj=int(_read(process, "oom_score_adj", pid)),
        cgroups=_control_groups(process, pid),
        cpus=status["Cpus_allowed_list"][0],
        inside=inside,
        label=label,
    )


def _control_groups(process: int, pid: int) -> tuple[Group, ...]:
    try:
        fd = os.open("cgroup", os.O_RDONLY | os.O_CLOEXEC, dir_fd=process)
    except FileNotFoundError:  # a kernel without control groups
        return ()
    os.close(fd)
    return parse_groups(os.fsdecode(_read(process, "cgroup", pid)))


def _label(process: int, pid: int) -> Label | None:
    try:
        return read_label(process)
    except OSError as error:
        raise _unseen(pid, error) from error


def _open_path(name: str, directory: int | None, pid: int) -> int:
    try:
        return os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=directory)
    except OSError as error:
        raise _unseen(pid, error) from error


def _read(process: int, name: str, pid: int, most: int = _READ_MAX) -> bytes:
    """The beginning of the file, ``most`` bytes."""
    try:
        return read_file(name, process, most)
    except OSError as error:
        raise _unseen(pid, error) from error


def _unseen(pid: int, error: OSError) -> KtaskfsError:
    if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):  # this process lacks a resource
        return TargetError.from_os(error, f"examine process {pid}, the writer")
    return NotPermitted(f"process {pid}, the writer, cannot be seen: {error.strerror}")


def _fields(status: bytes) -> dict[str, list[str]]:
    """The lines of /proc/PID/status by key. The kernel escapes newlines in the name, so no key can be forged."""
    lines = (line.partition(":") for line in status.decode(errors="replace").split("\n"))
    return {key: value.split() for key, _, value in lines}


def _file_size_max(limits: bytes) -> int:
    line = next(each for each in limits.splitlines() if each.startswith(b"Max file size"))
    soft = line.removeprefix(b"Max file size").split()[0]
    return -1 if soft == _INFINITY_TEXT else int(soft)


def _open_user_namespace(process: int, pid: int) -> int | None:
    """A descriptor of the process's user namespace; None if it is the same as this one's."""
    try:
        theirs = os.open("ns/user", os.O_RDONLY | os.O_CLOEXEC, dir_fd=process)
    except FileNotFoundError:  # a kernel without user namespaces: all processes share one
        return None
    except OSError as error:
        raise _unseen(pid, error) from error
    if not os.path.samestat(os.fstat(theirs), os.stat("/proc/self/ns/user")):
        return theirs
    os.close(theirs)
    return None
