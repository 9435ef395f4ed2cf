"""The options of a mount: parsed from the text after ``-o``, and frozen."""

from __future__ import annotations

import errno
import grp
import hashlib
import os
import pwd
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from ktaskfs.errors import ConfigError, InvalidValue
from ktaskfs.tasks.private_directory import PrivateDirectory
from ktaskfs.tasks.tunables import TUNABLES
from ktaskfs.units import parse_int, shown

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

GENERIC: Final = frozenset(
    {"defaults", "auto", "noauto", "user", "nouser", "users", "owner", "group", "nofail", "_netdev", "rw"}
    | {"dev", "nodev", "suid", "nosuid", "exec", "noexec", "async", "sync", "dirsync", "lazytime", "nolazytime"}
    | {"atime", "noatime", "diratime", "nodiratime", "relatime", "norelatime", "strictatime"}
)
"""Options of mount(8) that are accepted without effect; the mount is always nosuid, nodev and noexec."""
LINKS_MAX: Final = 40
"""Links in a row, as in the kernel (MAXSYMLINKS)."""
NAME_MAX: Final = 255
"""Bytes in a name (linux/limits.h)."""
NAME: Final = "ktaskfs"
"""Name of the filesystem, and of the mount in the service manager's store."""
KIND: Final = f"fuse.{NAME}"
"""The type of the filesystem, as mounts show it."""
STATE_ROOT: Final = "/run/ktaskfs-state"
CONFIG_FILE: Final = "/etc/ktaskfs.conf"
"""The file with the tunables at the start, if it exists; the file of the option ``config=`` must exist."""


class MountConfig(NamedTuple):
    """All options of a daemon.

    statedir:    the directory with the records of tasks.
    uid, gid, mode, hidepid: who may use ``tasks/control``, and see others' tasks.
    allow_other: whether users other than the daemon's may use the mount.
    tunables:    the given values, by name.
    config:      the given configuration file, None for the default.
    device:      ``/dev/fd/N``, an open /dev/fuse that is already mounted on ``mountpoint``; None to mount it.
    keep:        whether the service manager keeps the mount while no daemon serves it.
    nonempty:    whether the mount may cover a directory that is not empty.
    passing:     whether the state directory belongs to this mount point, and is removed when no task is left.
    """

    mountpoint: str
    statedir: str
    uid: int
    gid: int
    mode: int = 0o660
    hidepid: int = 0
    allow_other: bool = True
    tunables: Mapping[str, int] = MappingProxyType({})
    config: str | None = None
    device: str | None = None
    keep: bool = False
    nonempty: bool = False
    passing: bool = False

    def open_statedir(self) -> PrivateDirectory:
        """The state directory, created if missing. Raises TargetError, also if others can write to it or a parent."""
        return PrivateDirectory(self.statedir)

    def file_tunables(self) -> dict[str, int]:
        """The tunables in the current configuration file, without those set by an option.

        Raises ConfigError; its message has a line for each wrong line of the file.
        """
        try:
            with open(self.config or CONFIG_FILE, encoding="utf-8", errors="surrogateescape") as file:
                lines = file.read().split("\n")
        except OSError as error:
            if self.config is None and isinstance(error, FileNotFoundError):
                return {}
            raise ConfigError(f"{self.config or CONFIG_FILE}: {error.strerror}", errno=error.errno) from error
        values = _parse_lines(self.config or CONFIG_FILE, lines)
        return {name: value for name, value in values.items() if name not in self.tunables}


def _parse_lines(path: str, lines: Iterable[str]) -> dict[str, int]:
    """One ``NAME = VALUE`` per line, with ``#`` comments. Raises ConfigError, which names every wrong line."""
    values: dict[str, int] = {}
    errors: list[str] = []
    for number, line in enumerate(lines, 1):
        setting = line.partition("#")[0].strip()
        name, equals, text = (part.strip() for part in setting.partition("="))
        try:
            if setting and not equals:
                raise InvalidValue(f"{shown(setting)} is not NAME = VALUE")
            if setting and name not in _TUNABLES:
                raise InvalidValue(f"there is no tunable {shown(name)}")
            if name in values:
                raise InvalidValue(f"{name} is set a second time")
            if setting:
                values[name] = _TUNABLES[name].parse(text)
        except InvalidValue as error:
            errors.append(f"{path}:{number}: {error.message}")
    if errors:
        raise ConfigError("\n".join(errors))
    return values


def escape_path(path: str) -> str:
    """``/run/a-b`` as ``run-a\\x2db``, one name for one path, as systemd-escape --path has it."""
    kept = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789:_."
    parts = [part for part in os.fsencode(path).split(b"/") if part]
    text = "-".join("".join(chr(c) if c in kept else f"\\x{c:02x}" for c in part) for part in parts) or "-"
    return text if not text.startswith(".") else f"\\x2e{text[1:]}"


def state_name(path: str) -> str:
    """``path`` escaped; if it is too long for a name, it ends in the SHA-256 digest of the path."""
    name = escape_path(path)
    digest = hashlib.sha256(os.fsencode(path)).hexdigest()
    return name if len(name) <= NAME_MAX else f"{name[: NAME_MAX - 1 - len(digest)]}-{digest}"


def default_statedir(mountpoint: str, uid: int, environment: Mapping[str, str]) -> str:
    """The default state directory of this mount; raises ConfigError for a user without a runtime directory."""
    if uid == 0:
        return os.path.join(STATE_ROOT, state_name(mountpoint))
    runtime = environment.get("XDG_RUNTIME_DIR") or f"/run/user/{uid}"
    if not os.path.isdir(runtime):
        raise ConfigError("no runtime directory (XDG_RUNTIME_DIR): choose a state directory with -o statedir=DIR")
    return os.path.join(runtime, "ktaskfs", state_name(mountpoint))


def parse_options(
    mountpoint: str,
    options: list[str],
    environment: Mapping[str, str],
    *,
    fd: int | None = None,
    keep: bool = False,
) -> MountConfig:
    """Parse ``options``, each a comma-separated list as after ``-o``; a later one overrides an earlier one. Raises
    ConfigError.

    ``fd`` is an open /dev/fuse that is mounted there already; ``keep`` is the field.
    """
    if not mountpoint:  # from an unset variable; as a path it would mean the working directory
        raise ConfigError(f"the mount point is empty: {os.strerror(errno.ENOENT)}", errno=errno.ENOENT)
    uid = os.geteuid()
    # Do not access a path of an unserved mount: that would wait forever.
    path = _resolved(mountpoint) if fd is None else os.path.abspath(mountpoint)
    values: dict[str, Any] = {"uid": uid, "gid": os.getegid(), "allow_other": uid == 0}
    tunables: dict[str, int] = {}
    for option in (each for group in options for each in group.split(",") if each):
        name, equals, text = option.partition("=")
        try:
            if name in _TUNABLES and equals:
                tunables[name] = _TUNABLES[name].parse(text)
            elif name in _VALUES and equals:
                values[name] = _VALUES[name](text)
            elif name in _FLAGS and not equals:
                values.update([_FLAGS[name]])
            elif name not in GENERIC and not name.startswith(("x-", "X-", "comment")):
                raise InvalidValue("unknown option")
        except InvalidValue as error:
            raise ConfigError(f"option {option!a}: {error.message}") from error
    values.setdefault("statedir", None)
    if values["statedir"] is None:
        values |= {"statedir": default_statedir(path, uid, environment), "passing": True}
    for name in ("statedir", "config"):  # inside the mount the daemon would wait for itself
        if values.get(name) is not None and _is_below(values[name], path):
            raise ConfigError(f"option {name}: {values[name]} lies inside the mount")
    device = None if fd is None else f"/dev/fd/{fd}"
    return MountConfig(mountpoint=path, tunables=tunables, device=device, keep=keep, **values)


def _resolved(path: str) -> str:
    """``path`` with links resolved, without accessing the mount there, whose daemon may be dead."""
    for _ in range(LINKS_MAX):
        directory, name = os.path.split(path.rstrip("/"))
        if name in ("", ".", ".."):
            break
        path = os.path.join(os.path.realpath(directory), name)
        try:
            path = os.path.join(os.path.dirname(path), os.readlink(path))
        except OSError:  # not a link, or missing
            return path
    return os.path.realpath(path)


def _is_below(path: str, directory: str) -> bool:
    return os.path.commonpath([os.path.realpath(path), directory]) == directory


def _parse_uid(text: str) -> int:
    try:
        return parse_int(text, most=2**32 - 2) if text.isdecimal() else pwd.getpwnam(text).pw_uid
    except (KeyError, ValueError):
        raise InvalidValue(f"there is no user {text!a}") from None


def _parse_gid(text: str) -> int:
    try:
        return parse_int(text, most=2**32 - 2) if text.isdecimal() else grp.getgrnam(text).gr_gid
    except (KeyError, ValueError):
        raise InvalidValue(f"there is no group {text!a}") from None


def _parse_mode(text: str) -> int:
    if not text or text.strip("01234567") or int(text, 8) > 0o777:
        raise InvalidValue("a mode is octal, at most 0777")
    return int(text, 8)


def _parse_path(text: str) -> str:
    if not text:
        raise InvalidValue("the path is empty")
    return os.path.abspath(text)


_TUNABLES: Final = {each.name: each for each in TUNABLES}
_VALUES: Final[Mapping[str, Callable[[str], Any]]] = {
    "uid": _parse_uid,
    "gid": _parse_gid,
    "mode": _parse_mode,
    "hidepid": lambda text: parse_int(text, most=2),
    "statedir": _parse_path,
    "config": _parse_path,
}
_FLAGS: Final = {
    "allow_other": ("allow_other", True),
    "noallow_other": ("allow_other", False),
    "nonempty": ("nonempty", True),
}
"""The field set by each option without a value."""
