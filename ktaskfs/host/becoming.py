"""Become a caller, permanently, in a separate process."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
from typing import TYPE_CHECKING, Final

from ktaskfs.errors import NotPermitted, TargetError
from ktaskfs.host import syscalls
from ktaskfs.host.labels import NewLabel

if TYPE_CHECKING:
    from ktaskfs.host.credentials import Identity

CAP_SETGID: Final = 1 << 6
CAP_SETUID: Final = 1 << 7
CAP_SETPCAP: Final = 1 << 8
CAP_SYS_CHROOT: Final = 1 << 18
_EXIT_SOFTWARE: Final = 70
"""EX_SOFTWARE of sysexits.h."""


def become(identity: Identity, root: int, cwd: int, user_namespace: int | None = None) -> None:
    """Turn this process permanently into the caller for all checks of the kernel. Call it in a new child.

    With the capabilities to do so: root and working directory, groups, gid, uid, user namespace, then only the
    caller's capabilities. Without them (an ordinary user's daemon): the caller must have the same user and root, and
    only the working directory and the user namespace change. Both: nice value, OOM score, umask, file size
    limit, label, no_new_privs, and not dumpable: only CAP_SYS_PTRACE in this user namespace gives access to the
    process and its descriptors. Closes no descriptor.

    Raises NotPermitted or TargetError on failure; the process is then half changed and must end. Ends the
    process itself, with status 70, if the kernel reported success without effect.
    capabilities(7), credentials(7), path_resolution(7), user_namespaces(7).
    """
    if len(os.listdir("/proc/self/task")) != 1:
        raise NotPermitted("a process with several threads cannot change who it is")  # capset(2) changes one thread
    if identity.inside is not None and user_namespace is None:
        raise _not_joined()
    needed = CAP_SETUID | CAP_SETGID | CAP_SETPCAP | CAP_SYS_CHROOT
    changes = syscalls.capget()[0] & needed == needed
    try:
        _fare_alike(identity)
        new_label = None if identity.label is None else NewLabel.open(identity.label)
        if changes:
            syscalls.prctl(syscalls.PR_SET_DUMPABLE, 0)  # while the process has more capabilities than the caller
            inside = _enter(root, cwd)
            _change_ids(identity)
            if not inside:
                _go_to(cwd)
        else:
            _require_same_user(identity, root)
            _go_to(cwd)
        held = _ids_hold(identity, changes)
        if user_namespace is not None:
            _join(user_namespace)
        syscalls.prctl(syscalls.PR_SET_DUMPABLE, 0)  # again: a change of ids sets it to fs.suid_dumpable
        limited = changes or user_namespace is not None
        if limited:
            _limit_capabilities(*identity.capabilities)
        os.umask(identity.umask)
        _limit_file_size(identity.file_size_max)
        if new_label is not None:
            # Last, because the label may forbid the calls above; but before no_new_privs, which may forbid the label.
            new_label.take()
        syscalls.prctl(syscalls.PR_SET_NO_NEW_PRIVS, 1)
    except OSError as error:
        raise TargetError.from_os(error, f"become user {identity.uid}") from error
    if not (held and _limits_hold(identity, limited)):
        os.write(2, b"ktaskfs: the change of user did not hold\n")
        os._exit(_EXIT_SOFTWARE)


def warm_up_becoming(identity: Identity) -> None:
    """The part of ``become`` that changes nothing. Raises OSError."""
    os.listdir("/proc/self/task")
    _ids_hold(identity, changed=True)
    _limits_hold(identity, limited=True)


def _fare_alike(identity: Identity) -> None:
    """Take over the caller's nice value and OOM score; an ordinary user's daemon may be unable to lower them."""
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, identity.nice)
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "wb") as file:
        file.write(b"%d" % identity.oom_score_adj)


def _enter(root: int, cwd: int) -> bool:
    """Chroot while still privileged, and only then go to the working directory, which may lie outside the root.

    False if this process may not enter it, like a FUSE filesystem of the caller; the caller can enter it later.
    """
    os.fchdir(root)
    os.chroot(".")
    try:
        os.fchdir(cwd)
    except PermissionError:
        return False
    return True


def _go_to(cwd: int) -> None:
    """Go to the caller's working directory or, if the caller may not enter it (after su(1)), to one without targets.

    The daemon has made paths absolute, except below a directory that has no name: then this raises PermissionError.
    """
    try:
        os.fchdir(cwd)
    except PermissionError:
        name = os.readlink(f"/proc/self/fd/{cwd}")
        if not name.startswith("/") or name.endswith(" (deleted)"):
            raise
        os.chdir("/proc/self/fdinfo")


def _change_ids(identity: Identity) -> None:
    """Groups, gid and uid, with all capabilities that the process has."""
    syscalls.prctl(syscalls.PR_SET_KEEPCAPS, 1)
    if set(os.getgroups()) != set(identity.groups):
        os.setgroups(identity.groups)
    os.setresgid(identity.gid, identity.gid, identity.gid)
    os.setresuid(identity.uid, identity.uid, identity.uid)
    _, permitted, _ = syscalls.capget()
    syscalls.capset(permitted, permitted, 0)


def _join(user_namespace: int) -> None:
    """After the ids, which need no mapping outside the namespace, and before the capabilities, which the namespace
    grants."""
    try:
        syscalls.setns(user_namespace, syscalls.CLONE_NEWUSER)
    except PermissionError as error:
        raise _not_joined() from error


def _not_joined() -> NotPermitted:
    text = "this daemon may not join your user namespace: write from outside of it"
    return NotPermitted(text, errno=errno.EACCES)


def _limit_capabilities(effective: int, permitted: int, bounding: int) -> None:
    """Keep at most these capabilities. First the bounding set, because changing it needs CAP_SETPCAP."""
    for number in range(64):
        if bounding >> number & 1:
            continue
        try:
            present = syscalls.prctl(syscalls.PR_CAPBSET_READ, number)
        except OSError:  # EINVAL: past the last capability of this kernel
            break
        if present:
            syscalls.prctl(syscalls.PR_CAPBSET_DROP, number)
    syscalls.prctl(syscalls.PR_CAP_AMBIENT, syscalls.PR_CAP_AMBIENT_CLEAR_ALL)
    permitted &= syscalls.capget()[1]
    syscalls.capset(permitted & effective, permitted, 0)


def _require_same_user(identity: Identity, root: int) -> None:
    if identity.uid != os.geteuid():
        raise NotPermitted(f"this mount is user {os.geteuid()}'s: its tasks cannot run as user {identity.uid}")
    theirs, ours = os.fstat(root), os.stat("/")
    if (theirs.st_dev, theirs.st_ino) != (ours.st_dev, ours.st_ino):
        raise NotPermitted("this daemon may not change its root directory to the caller's")


def _limit_file_size(most: int) -> None:
    """Take over the soft limit, so that the kernel refuses (EFBIG) the same writes as for the caller."""
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    if most >= 0 and (hard == resource.RLIM_INFINITY or most < hard):
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, hard))


def _ids_hold(identity: Identity, changed: bool) -> bool:
    """Whether the ids are the caller's, as this user namespace counts them."""
    if os.getresuid() != (identity.uid,) * 3:
        return False
    return not changed or (os.getresgid() == (identity.gid,) * 3 and set(os.getgroups()) == set(identity.groups))


def _limits_hold(identity: Identity, limited: bool) -> bool:
    if syscalls.prctl(syscalls.PR_GET_NO_NEW_PRIVS) != 1 or syscalls.prctl(syscalls.PR_GET_DUMPABLE) != 0:
        return False
    most_effective, most_permitted, _ = identity.capabilities
    effective, permitted, inheritable = syscalls.capget()
    return not limited or (effective & ~most_effective == 0 and permitted & ~most_permitted == 0 and inheritable == 0)
