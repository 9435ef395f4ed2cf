"""Checks of ktaskfs itself: FUSE, the mount and its service, rights, threads, versions."""

from __future__ import annotations

import contextlib
import errno
import grp
import os
import pwd
import re
import shlex
import stat
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Final

from ktaskfs.cli.arguments import DEFAULT_MOUNT
from ktaskfs.cli.machine import OK, UNKNOWN, Diagnosis, MachineFiles, name_of, note, wrong
from ktaskfs.errors import DaemonAway, KtaskfsError, TargetError
from ktaskfs.units import human_size
from ktaskfs.version import VERSION

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from ktaskfs.cli.mounted import Mounted

KERNEL: Final = (5, 14)
"""The first with MADV_POPULATE_WRITE."""
THREADS_OF_NODE: Final = 16
"""Threads that use up the memory bandwidth of a NUMA node (docs/explanation/scaling.md)."""
UNITS: Final = ("ktaskfs.service", "ktaskfs-confined.service")
"""The units that serve DEFAULT_MOUNT, one at a time."""
SYSTEMCTL_TIMEOUT: Final = 5.0
"""Seconds."""
STATES: Final = "run/ktaskfs-state"
"""The directory with the state directories of root's mounts without the option statedir=."""
STATES_LEAST: Final = 2 << 20
"""Bytes for a record with the largest result."""
SPAWNER: Final = "ktaskfs: spawner"
"""The command line that the process that forks the workers gives itself."""
ANSWER_TIMEOUT: Final = 5.0
"""Seconds within which a daemon answers, even on a busy machine."""


def check_fuse(machine: MachineFiles) -> Iterator[Diagnosis]:
    """Whether the kernel serves filesystems in user space, and for whom: not everybody needs to mount."""
    known = any(line.split()[-1:] == ["fuse"] for line in (machine.read("proc/filesystems") or "").splitlines())
    if known and machine.may_write("dev/fuse"):
        yield Diagnosis("fuse", OK, "/dev/fuse exists")
    elif known and machine.exists("dev/fuse"):
        text = f"{name_of(os.getuid())} may not open /dev/fuse, and cannot mount"
        yield Diagnosis("fuse", note("chmod 666 /dev/fuse"), text)
    else:
        yield Diagnosis("fuse", wrong("modprobe fuse"), "the kernel has no FUSE, or /dev/fuse is missing")


def answers(mounted: Mounted, seconds: float = ANSWER_TIMEOUT) -> bool:
    """Whether the mount answers in time, or fails. The other checks of it would wait for ever."""
    has_answered = threading.Event()

    def ask() -> None:
        with contextlib.suppress(KtaskfsError):  # check_mount says so
            mounted.read("version")
        has_answered.set()

    threading.Thread(target=ask, daemon=True).start()
    return has_answered.wait(seconds)


def check_hung(mounted: Mounted, state: Mapping[str, str]) -> Iterator[Diagnosis]:
    """The finding for a mount that does not answer."""
    text = f"{mounted.path}: its daemon is stopped or hangs, there is no answer within {ANSWER_TIMEOUT:.0f} s"
    yield Diagnosis("mount", wrong(_restart(mounted, state)), text)


def _restart(mounted: Mounted, state: Mapping[str, str]) -> str | None:
    """The command for a mount of the service; None for another mount."""
    is_of_service = state.get("LoadState") == "loaded" and mounted.path.rstrip("/") == DEFAULT_MOUNT
    return f"systemctl restart {_unit(state)}" if is_of_service else None


def _unit(state: Mapping[str, str]) -> str:
    return state.get("Id", UNITS[0]).removesuffix(".service")


def _mount_anew(machine: MachineFiles, path: str, *, is_there: bool = True, answers: bool = False) -> str:
    """The command for a mount without the service, with the options of fstab(5) or of its unit, if it has any."""
    place, full = shlex.quote(path), os.path.abspath(path)
    first = f"umount {place} && " if answers else ""
    if any(each.kind.endswith("ktaskfs") and each.point == full for each in machine.filesystems("etc/fstab")):
        return f"{first}mount {place}"
    if _systemctl(machine, "show", "--property=FragmentPath", "--value", "--", full).strip():
        return f"systemctl restart {shlex.quote(full)}"
    return f"{first}ktaskfs mount {place}{'  # with the options that it had' if is_there else ''}"


def check_mount(machine: MachineFiles, mounted: Mounted, state: Mapping[str, str]) -> Iterator[Diagnosis]:
    """Whether a daemon of the command's version answers at the mount; ``state`` is that of the service."""
    restart = _restart(mounted, state)
    try:
        version = mounted.read("version").strip()
    except DaemonAway as error:
        dead = error.errno != errno.ENOENT
        text = f"{mounted.path}: {'its daemon does not answer' if dead else 'no ktaskfs is mounted'}"
        yield Diagnosis("mount", wrong(restart or _mount_anew(machine, mounted.path, is_there=dead)), text)
        return
    except TargetError as error:  # only its user may look at a user's mount
        yield Diagnosis("mount", UNKNOWN if error.errno == errno.EACCES else wrong(None), error.message)
        return
    yield Diagnosis("mount", OK, f"{mounted.path} answers")
    if version == VERSION:
        yield Diagnosis("versions", OK, f"command and daemon are {VERSION}")
    else:
        text = f"the command is {VERSION}, the daemon of {mounted.path} is {version}"
        yield Diagnosis("versions", wrong(restart or _mount_anew(machine, mounted.path, answers=True)), text)


def check_system(machine: MachineFiles) -> Iterator[Diagnosis]:
    """Whether the kernel is new enough."""
    release = (machine.read("proc/sys/kernel/osrelease") or "").strip()
    match = re.match(r"(\d+)\.(\d+)", release)
    python = ".".join(map(str, sys.version_info[:3]))
    if match is None:
        yield Diagnosis("versions", UNKNOWN, "/proc/sys/kernel/osrelease cannot be read")
    elif (int(match[1]), int(match[2])) < KERNEL:
        text = f"Linux {release} is older than {KERNEL[0]}.{KERNEL[1]}"
        yield Diagnosis("versions", wrong("install a newer kernel, and boot it"), text)
    else:
        yield Diagnosis("versions", OK, f"Linux {release}, Python {python}")


def service_state(machine: MachineFiles) -> Mapping[str, str]:
    """systemd's state of the service; empty without systemd, or without an answer."""
    return in_use(_systemctl(machine, "show", *UNITS, "--property=Id,LoadState,ActiveState,UnitFileState"))


def _systemctl(machine: MachineFiles, *words: str) -> str:
    """The output of systemctl(1); empty without systemd, or without an answer."""
    if not machine.exists("run/systemd/system"):
        return ""
    try:
        command = ("systemctl", *words)
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=SYSTEMCTL_TIMEOUT).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ""


def in_use(text: str) -> Mapping[str, str]:
    """The unit at work in ``text``, the output of systemctl; without one, a unit that failed, or starts at boot."""
    units = [dict(line.split("=", 1) for line in block.splitlines() if "=" in line) for block in text.split("\n\n")]

    def use(state: Mapping[str, str]) -> tuple[bool, bool, bool]:
        active = state.get("ActiveState", "inactive")
        return active not in ("inactive", "failed"), active == "failed", state.get("UnitFileState") == "enabled"

    return max(units, key=use)  # the first of several


def check_service(state: Mapping[str, str]) -> Iterator[Diagnosis]:
    """Whether the installed service is active and starts at boot."""
    active, enabled, unit = state.get("ActiveState"), state.get("UnitFileState"), _unit(state)
    if state.get("LoadState") != "loaded":
        yield Diagnosis("service", UNKNOWN, "ktaskfs.service is not installed, or there is no systemd")
    elif active == "failed":
        mend = f"systemctl reset-failed {unit} && systemctl start {unit}"
        yield Diagnosis("service", wrong(mend), f"{unit}.service failed: see journalctl -u {unit}")
    elif active == "active" and enabled == "disabled":
        text = f"{unit}.service is active, but does not start at boot"
        yield Diagnosis("service", wrong(f"systemctl enable {unit}"), text)
    else:
        yield Diagnosis("service", OK, f"{unit}.service is {active} and {enabled}")


def check_access(mounted: Mounted) -> Iterator[Diagnosis]:
    """Whether the caller may start tasks."""
    control = f"{mounted.path}/tasks/control"
    try:
        status = os.stat(control)
    except OSError:  # check_mount says so
        return
    user, gid = name_of(os.getuid()), status.st_gid
    if os.access(control, os.W_OK):
        yield Diagnosis("access", OK, f"{user} may start tasks")
    elif gid == 0 or not status.st_mode & stat.S_IWGRP:
        text = f"{user} may not start tasks, and neither may any group"
        place = shlex.quote(mounted.path)
        mend = f"umount {place} && ktaskfs mount -o gid=ktask,mode=0660 {place}  # and with its other options"
        yield Diagnosis("access", wrong(mend), text)
    elif _is_member(gid) and gid not in {os.getgid(), *os.getgroups()}:
        text = f"{user} is a member of the group {_group(gid)}, but this session is older than that"
        yield Diagnosis("access", wrong(f"newgrp {_group(gid)}  # or log in again"), text)
    else:
        group = _group(gid)
        text = f"{user} may not start tasks; the group {group} may"
        yield Diagnosis("access", wrong(f"usermod --append --groups {group} {user}"), text)


def check_states(machine: MachineFiles, mounted: Mounted) -> Iterator[Diagnosis]:
    """Whether the mount's daemon can write the records of tasks: otherwise no task starts.

    Says nothing about an ordinary user's default, which the user's environment decides.
    """
    try:
        uid = os.stat(mounted.path).st_uid
    except OSError:  # check_mount says so
        uid = 0
    states = _option(machine, mounted.path, uid, "statedir") or ("" if uid else f"/{STATES}")
    room = machine.room(states.lstrip("/")) if states.startswith("/") else None
    if room is None or not room.f_blocks:  # there is no such directory, or no limit
        return
    free = room.f_bfree * room.f_frsize
    place = f'"$(findmnt -n -o TARGET -T {shlex.quote(states)})"'
    if room.f_flag & os.ST_RDONLY:
        yield Diagnosis(
            "state directory", wrong(f"mount -o remount,rw {place}"), f"{states} is read-only: no task can start"
        )
    elif free < STATES_LEAST or (room.f_files and not room.f_ffree):
        mend = f"du -ahx {place} | sort -h | tail  # and remove what nobody needs"
        text = f"{states} has {human_size(free)} and {room.f_ffree} inodes left: no task can start"
        yield Diagnosis("state directory", wrong(mend), text)
    else:
        yield Diagnosis("state directory", OK, f"{states} has {human_size(free)} left")


def _option(machine: MachineFiles, path: str, uid: int, name: str) -> str:
    """The value of an option of the mount on ``path``, which ``uid`` serves; empty without one. Any user may give a
    process any command line, so only those of that user count."""
    for pid in filter(str.isdecimal, machine.names("proc")):
        owner = re.search(r"^Uid:\s+(\d+)", machine.read(f"proc/{pid}/status") or "", re.MULTILINE)
        if owner is None or int(owner[1]) != uid:
            continue
        words = (machine.read(f"proc/{pid}/cmdline") or "").split("\0")
        given = [each for word in words for each in word.split(",") if each.startswith(f"{name}=")]
        if given and os.path.abspath(path) in words:
            return given[-1].removeprefix(f"{name}=")
    return ""


def check_spawner(machine: MachineFiles, mounted: Mounted) -> Iterator[Diagnosis]:
    """Whether a spawner of the user who serves the mount is stopped: every start waits for it."""
    try:
        uid = os.stat(mounted.path).st_uid
    except OSError:  # check_mount says so
        return
    stopped = [pid for pid in machine.names("proc") if pid.isdecimal() and _is_stopped_spawner(machine, pid, uid)]
    for pid in stopped:
        text = f"the spawner, process {pid}, is stopped by a signal: starts wait for it"
        mend = f"kill -CONT {pid}  # or kill -KILL {pid}: the next start makes another"
        yield Diagnosis("spawner", wrong(mend), text)
    if not stopped:
        yield Diagnosis("spawner", OK, "none is stopped")


def _is_stopped_spawner(machine: MachineFiles, pid: str, uid: int) -> bool:
    status = machine.read(f"proc/{pid}/status") or ""
    if re.search(rf"^State:\s+[Tt] .*^Uid:\s+{uid}\s", status, re.MULTILINE | re.DOTALL) is None:
        return False
    return (machine.read(f"proc/{pid}/cmdline") or "").startswith(SPAWNER)


def _is_member(gid: int) -> bool:
    """Whether the user is a member of the group, although this process may not have it yet."""
    try:
        user = pwd.getpwuid(os.getuid())
    except KeyError:
        return False
    return gid in os.getgrouplist(user.pw_name, user.pw_gid)


def _group(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)


def check_threads(machine: MachineFiles, mounted: Mounted) -> Iterator[Diagnosis]:
    """Whether one task may use as many threads as memory and CPUs allow."""
    try:
        cap, share = mounted.read("debug/ktask_max_threads").strip(), int(mounted.read("debug/ktask_cpu_percent"))
    except KtaskfsError:  # check_mount says so
        return
    cpus, nodes = machine.cpus(), len(machine.nodes())
    useful = max(1, min(cpus * share // 100, THREADS_OF_NODE * nodes))
    most = cpus if cap == "max" else int(cap)
    words = f"ktask_max_threads is {cap}, with {cpus} CPUs in NUMA nodes: {nodes}"
    if most < useful / 2:
        text = f"{words}: a task could use {useful} threads"
        mend = f"echo max > {shlex.quote(mounted.path)}/debug/ktask_max_threads"
        yield Diagnosis("threads", wrong(f"{mend}  # and take max_threads out of /etc/ktaskfs.conf"), text)
    else:
        yield Diagnosis("threads", OK, words)
