"""Who a caller is, read from /proc, and becoming that caller in a process of its own.

A pid alone is never trusted: it may belong to another process by the time it is looked up. Everything is read
through one descriptor of /proc/PID, which stays with that process and fails with ESRCH when it is gone, and its
filesystem uid and gid must be those that the kernel put into the request.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
import resource
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from ktaskfs.errors import KtaskfsError, NotPermitted, TargetError
from ktaskfs.host import syscalls

if TYPE_CHECKING:
    from collections.abc import Mapping

CAP_SETGID: Final = 1 << 6
CAP_SETUID: Final = 1 << 7
CAP_SETPCAP: Final = 1 << 8
CAP_SYS_CHROOT: Final = 1 << 18
_EXIT_SOFTWARE: Final = 70
"""EX_SOFTWARE of sysexits.h."""
_READ_MAX: Final = 1 << 20
_INFINITY_TEXT: Final = b"unlimited"


@dataclass(frozen=True)
class Identity:
    """What the kernel's permission checks see of a process; plain numbers, fit for a message.

    ``start_time`` is in clock ticks since boot (field 22 of /proc/PID/stat): with ``pid`` it names a process for
    the length of the boot. The capabilities are bit masks, and none at all for a process in a user namespace that is
    not ours, since they hold only in there. ``file_size_max`` is the soft RLIMIT_FSIZE, -1 for no limit. ``nice`` and
    ``oom_score_adj`` are no matter of permission, but a task shall not fare better than its caller.
    """

    pid: int
    start_time: int
    uid: int
    gid: int
    groups: tuple[int, ...]
    effective: int
    permitted: int
    bounding: int
    umask: int
    file_size_max: int
    nice: int
    oom_score_adj: int

    def to_fields(self) -> dict[str, Any]:
        """The fields as JSON can carry them."""
        return dataclasses.asdict(self) | {"groups": list(self.groups)}

    @classmethod
    def from_fields(cls, fields: Mapping[str, Any]) -> Identity:
        """The inverse of ``to_fields``."""
        return cls(**{**fields, "groups": tuple(fields["groups"])})


@dataclass(frozen=True)
class CallerProcess:
    """A caller's identity, with O_PATH descriptors of its root and working directory."""

    identity: Identity
    root: int
    cwd: int

    def close(self) -> None:
        """Close both descriptors."""
        os.close(self.root)
        os.close(self.cwd)


def _stat_field(stat: bytes, number: int) -> int:
    """Field 4 or later of /proc/PID/stat; the name in field 2 may hold spaces, parentheses and newlines. proc(5)."""
    return int(stat[stat.rindex(b")") + 1 :].split()[number - 3])


def parse_start_time(stat: bytes) -> int:
    """Field 22 of /proc/PID/stat: clock ticks since boot."""
    return _stat_field(stat, 22)


def start_time(pid: int) -> int | None:
    """When the process began, in clock ticks since boot; None if there is no such process."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return parse_start_time(file.read(_READ_MAX))
    except (FileNotFoundError, ProcessLookupError):
        return None


def read_caller(pid: int, uid: int, gid: int) -> CallerProcess:
    """The caller behind a request that the kernel says came from ``pid`` with filesystem ids ``uid`` and ``gid``.

    Raises NotPermitted when there is no such process any more, when its ids are others, or when its root and
    working directory may not be seen (another user's process, seen by an ordinary user's daemon); TargetError when
    this process has no descriptor or memory left.
    """
    process = _open_path(f"/proc/{pid}", None, pid)
    try:
        identity = _identity(process, pid)
        if (identity.uid, identity.gid) != (uid, gid):
            raise NotPermitted(f"process {pid} is not the one that wrote: its user or group is another")
        root = _open_path("root", process, pid)
        try:
            cwd = _open_path("cwd", process, pid)
        except KtaskfsError:
            os.close(root)
            raise
    finally:
        os.close(process)
    return CallerProcess(identity, root, cwd)


def _identity(process: int, pid: int) -> Identity:
    status = _fields(_read(process, "status", pid))
    if "Umask" not in status:  # the process is a zombie: killed between its request and this look at it
        raise NotPermitted(f"process {pid}, which wrote, has ended")
    mask = -1 if _same_user_namespace(process, pid) else 0
    stat = _read(process, "stat", pid)
    return Identity(
        pid=pid,
        start_time=parse_start_time(stat),
        uid=int(status["Uid"][3]),
        gid=int(status["Gid"][3]),
        groups=tuple(int(group) for group in status["Groups"]),
        effective=int(status["CapEff"][0], 16) & mask,
        permitted=int(status["CapPrm"][0], 16) & mask,
        bounding=int(status["CapBnd"][0], 16) & mask,
        umask=int(status["Umask"][0], 8),
        file_size_max=_file_size_max(_read(process, "limits", pid)),
        nice=_stat_field(stat, 19),
        oom_score_adj=int(_read(process, "oom_score_adj", pid)),
    )


def _open_path(name: str, directory: int | None, pid: int) -> int:
    try:
        return os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=directory)
    except OSError as error:
        raise _unseen(pid, error) from error


def _read(process: int, name: str, pid: int) -> bytes:
    try:
        fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=process)
        try:
            pieces = []
            while piece := os.read(fd, _READ_MAX):
                pieces.append(piece)
            return b"".join(pieces)
        finally:
            os.close(fd)
    except OSError as error:
        raise _unseen(pid, error) from error


def _unseen(pid: int, error: OSError) -> KtaskfsError:
    if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):  # it is we who lack something
        return TargetError.from_os(error, f"look at process {pid}, which wrote")
    return NotPermitted(f"process {pid}, which wrote, cannot be seen: {error.strerror}")


def _fields(status: bytes) -> dict[str, list[str]]:
    """The lines of /proc/PID/status by key. The kernel escapes newlines in the name, so no key can be forged."""
    lines = (line.partition(":") for line in status.decode(errors="replace").split("\n"))
    return {key: value.split() for key, _, value in lines}


def _file_size_max(limits: bytes) -> int:
    line = next(each for each in limits.splitlines() if each.startswith(b"Max file size"))
    soft = line.removeprefix(b"Max file size").split()[0]
    return -1 if soft == _INFINITY_TEXT else int(soft)


def _same_user_namespace(process: int, pid: int) -> bool:
    try:
        theirs = os.stat("ns/user", dir_fd=process)
        ours = os.stat("/proc/self/ns/user")
    except FileNotFoundError:  # a kernel without user namespaces: all processes share the one there is
        return True
    except OSError as error:
        raise _unseen(pid, error) from error
    return (theirs.st_dev, theirs.st_ino) == (ours.st_dev, ours.st_ino)


def become(identity: Identity, root: int, cwd: int) -> None:
    """Turn this process into the caller for every check the kernel makes, for good. Call it in a new child.

    With the capabilities to do so: root and working directory, groups, gid, uid, then no capability that the caller
    does not have. Without them (an ordinary user's daemon): the caller must be of the same user and root, and only
    the working directory changes. Both: nice value, OOM score, umask, file size limit, no_new_privs. Closes neither
    descriptor.

    Raises NotPermitted or TargetError when it cannot be done; the process is then neither one nor the other
    and must end. Ends the process itself, status 70, if the kernel said yes and it did not hold.
    capabilities(7), credentials(7), path_resolution(7).
    """
    if len(os.listdir("/proc/self/task")) != 1:
        raise NotPermitted("a process with several threads cannot change who it is")  # capset(2) is for one thread
    needed = CAP_SETUID | CAP_SETGID | CAP_SETPCAP | CAP_SYS_CHROOT
    changes = syscalls.capget()[0] & needed == needed
    try:
        _fare_alike(identity)
        if changes:
            inside = _enter(root, cwd)
            _change_user(identity)
            if not inside:
                os.fchdir(cwd)
        else:
            _require_same_user(identity, root)
            os.fchdir(cwd)
        os.umask(identity.umask)
        _limit_file_size(identity.file_size_max)
        syscalls.prctl(syscalls.PR_SET_NO_NEW_PRIVS, 1)
    except OSError as error:
        raise TargetError.from_os(error, f"become user {identity.uid}") from error
    if not _holds(identity, changes):
        os.write(2, b"ktaskfs: the change of user did not hold\n")
        os._exit(_EXIT_SOFTWARE)


def _fare_alike(identity: Identity) -> None:
    """Take over the caller's nice value and OOM score; an ordinary user's daemon may have to leave them higher."""
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, identity.nice)
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "wb") as file:
        file.write(b"%d" % identity.oom_score_adj)


def _enter(root: int, cwd: int) -> bool:
    """Chroot while still privileged, and only then go to the working directory, which may lie outside the root.

    False if that is closed to us, as a FUSE filesystem of the caller's is even to root: the caller can go there itself.
    """
    os.fchdir(root)
    os.chroot(".")
    try:
        os.fchdir(cwd)
    except PermissionError:
        return False
    return True


def _change_user(identity: Identity) -> None:
    """Ids and capabilities. The bounding set goes first and the rest last: each step needs what the next drops."""
    for number in range(64):
        try:
            present = syscalls.prctl(syscalls.PR_CAPBSET_READ, number)
        except OSError:  # EINVAL: past the last capability of this kernel
            break
        if present and not identity.bounding >> number & 1:
            syscalls.prctl(syscalls.PR_CAPBSET_DROP, number)
    syscalls.prctl(syscalls.PR_SET_KEEPCAPS, 1)
    if set(os.getgroups()) != set(identity.groups):
        os.setgroups(identity.groups)
    os.setresgid(identity.gid, identity.gid, identity.gid)
    os.setresuid(identity.uid, identity.uid, identity.uid)
    syscalls.prctl(syscalls.PR_CAP_AMBIENT, syscalls.PR_CAP_AMBIENT_CLEAR_ALL)
    _, permitted, _ = syscalls.capget()
    permitted &= identity.permitted
    syscalls.capset(permitted & identity.effective, permitted, 0)


def _require_same_user(identity: Identity, root: int) -> None:
    if identity.uid != os.geteuid():
        raise NotPermitted(f"this mount is user {os.geteuid()}'s: its tasks cannot run as user {identity.uid}")
    theirs, ours = os.fstat(root), os.stat("/")
    if (theirs.st_dev, theirs.st_ino) != (ours.st_dev, ours.st_ino):
        raise NotPermitted("this mount's daemon may not change its root directory to the caller's")


def _limit_file_size(most: int) -> None:
    """Take over the soft limit, so that the kernel refuses (EFBIG) what it would have refused the caller."""
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    if most >= 0 and (hard == resource.RLIM_INFINITY or most < hard):
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, hard))


def _holds(identity: Identity, changed: bool) -> bool:
    effective, permitted, inheritable = syscalls.capget()
    if os.getresuid() != (identity.uid,) * 3 or syscalls.prctl(syscalls.PR_GET_NO_NEW_PRIVS) != 1:
        return False
    if not changed:
        return True
    return (
        os.getresgid() == (identity.gid,) * 3
        and set(os.getgroups()) == set(identity.groups)
        and effective & ~identity.effective == 0
        and permitted & ~identity.permitted == 0
        and inheritable == 0
    )
