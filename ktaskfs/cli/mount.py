"""``ktaskfs mount``: becomes the daemon, in the foreground or in the background."""

from __future__ import annotations

import contextlib
import errno
import gc
import logging
import os
import resource
import sys
import time
from typing import TYPE_CHECKING, Final, TextIO

from ktaskfs.config import KIND, NAME, MountConfig, parse_options
from ktaskfs.descriptors import close_all_but
from ktaskfs.errors import KtaskfsError, TargetError
from ktaskfs.line_output import LineOutput
from ktaskfs.systemd import JournalHandler, Manager, stderr_is_journal

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Mapping

    from ktaskfs.tasks.private_directory import PrivateDirectory

LOG: Final = logging.getLogger(__name__)
READY: Final = b"ready"
DESCRIPTORS_LEAST: Final = 64
"""Descriptors without which a daemon cannot start."""
CHILDREN_MAX: Final = 10.0
"""Maximum seconds until the children have ended."""
PAUSE: Final = 0.01
"""Seconds between two checks whether they have."""
LOG_NAME: Final = "log"
LOG_MAX: Final = 1 << 20
"""Bytes of the log after which the daemon moves it to ``log.old``, and replaces the old contents there."""
LOG_FORMAT: Final = "%(asctime)s %(levelname)s %(message)s"


def mount(given: argparse.Namespace, environment: Mapping[str, str]) -> int:
    """Mount by the command line; returns the exit status, in the background as soon as the mount answers."""
    gc.disable()  # the imports make no garbage, and looking for it takes a twentieth of the start
    try:
        manager = Manager(environment)
        fd = manager.kept(NAME) if given.keep and given.fd is None else given.fd
        config = parse_options(given.mountpoint, given.options, environment, fd=fd, keep=given.keep)
        if given.fd is not None:
            os.set_inheritable(given.fd, False)  # or a child would keep a mount alive that nobody serves
        if given.fake:
            config.file_tunables()
            return 0
        os.umask(os.umask(0) & 0o077)  # the next daemon must be able to read the state directory
        if given.store:
            return _store(config, manager)
        if not given.foreground:
            return _run_behind(config, environment)
        _log_to(JournalHandler() if stderr_is_journal(environment) else LineHandler(os.dup(2)))
        # With --fd another process mounts.
        may_mount_anew = given.keep and given.fd is None
        _run(config, _open_statedir(config), lambda: None, manager, may_mount_anew=may_mount_anew)
    except KtaskfsError as error:
        _complain(error.message)
        return 1
    except OSError as error:
        if given.fd is None:
            raise
        _complain(f"--fd {given.fd}: {error.strerror}")
        return 1
    return 0


class LineHandler(logging.Handler):
    """Logs to ``fd``, a copy of standard error. Descriptor 2 is another file while the session captures what libfuse
    says."""

    def __init__(self, fd: int) -> None:
        super().__init__()
        self._output = LineOutput(fd)

    def emit(self, record: logging.LogRecord) -> None:
        self._output.write(self.format(record))


class LogFile(logging.StreamHandler[TextIO]):
    """Logs to the file ``log``, which is also standard error, so that other messages there are in it, too.

    The spawner writes to the same open file, so a full log is copied and then emptied.
    """

    def __init__(self, directory: PrivateDirectory) -> None:
        """Open the file, made if missing, as standard output and error. Raises OSError."""
        self._fd = os.dup(2)
        super().__init__(
            open(self._fd, "w", 1, encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115 - for all its life
        )
        self._directory = directory
        self._open()

    def _open(self) -> None:
        log = self._directory.open(LOG_NAME, os.O_RDWR | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.dup2(log, self._fd, inheritable=False)
        os.close(log)

    def emit(self, record: logging.LogRecord) -> None:
        super().emit(record)
        status = os.fstat(self._fd)
        with contextlib.suppress(OSError):  # the next line tries again, and no line is lost
            if not status.st_nlink:  # somebody has removed it
                self._open()
            elif status.st_size > LOG_MAX:
                self._keep(status.st_size)

    def _keep(self, size: int) -> None:
        """Move ``size`` bytes of the log to ``log.old``. Raises OSError."""
        old = self._directory.open(f"{LOG_NAME}.old", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        with open(old, "wb") as file:
            file.write(os.pread(self._fd, size, 0))
        os.ftruncate(self._fd, 0)


def _log_to(handler: logging.Handler) -> None:
    if not isinstance(handler, JournalHandler):
        handler.setFormatter(logging.Formatter(LOG_FORMAT))
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)


def _open_statedir(config: MountConfig) -> PrivateDirectory:
    """The state directory. It is not made if the mount is impossible."""
    from ktaskfs.fuse.mountpoint import require_place

    if config.device is None:  # otherwise it is mounted, and waits for this server
        require_place(config.mountpoint, KIND, nonempty=config.nonempty)
    return config.open_statedir()


def _run(
    config: MountConfig,
    directory: PrivateDirectory,
    ready: Callable[[], None],
    manager: Manager,
    *,
    may_mount_anew: bool = False,
) -> None:
    """``may_mount_anew`` in place of a kept mount that cannot be taken over: this process then executes itself."""
    from ktaskfs.operations.base.registry import find_operations
    from ktaskfs.worker.start import fork_spawner

    # Each running task takes two descriptors, and so does each open control file: raise the limit.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if most < DESCRIPTORS_LEAST:
        message = f"the limit on open files (ulimit -Hn) is {most}, below {DESCRIPTORS_LEAST}"
        raise TargetError(message, errno=errno.EMFILE)
    with contextlib.suppress(ValueError):  # more than fs.nr_open, if that was lowered
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    operations = find_operations()
    try:
        spawner = fork_spawner(operations)  # before the imports that only the daemon needs
    except OSError as error:
        raise TargetError.from_os(error, "start the spawner") from error

    from ktaskfs.daemon import run_daemon
    from ktaskfs.fuse.negotiation import CannotTakeOver

    try:
        run_daemon(config, directory, ready, manager, operations, spawner)
    except CannotTakeOver as error:
        if not may_mount_anew or not _children_reaped():
            raise
        LOG.warning("%s: a new mount takes its place", error.message)
        others = {name: text for name, text in os.environ.items() if not name.startswith("LISTEN_")}
        os.execve(sys.executable, sys.orig_argv, others)


def _children_reaped() -> bool:
    """Reap all children, which execve(2) would keep; False if one does not end, as one that waits for the old mount."""
    end = time.monotonic() + CHILDREN_MAX
    with contextlib.suppress(ChildProcessError):
        while True:
            if os.waitpid(-1, os.WNOHANG) == (0, 0):
                if time.monotonic() > end:
                    return False
                time.sleep(PAUSE)
    return True


def _store(config: MountConfig, manager: Manager) -> int:
    from ktaskfs.daemon import mount_for_manager

    os.close(mount_for_manager(config, manager))
    return 0


def _run_behind(config: MountConfig, environment: Mapping[str, str]) -> int:
    """Fork the daemon and wait until it reports that the mount answers, or an error."""
    try:
        readable, writable = os.pipe()
        child = os.fork()
    except OSError as error:  # a limit on processes or open files
        raise TargetError.from_os(error, "start the daemon") from error
    if child:
        os.close(writable)
        with os.fdopen(readable, "rb") as pipe:
            said = pipe.read()
        if said == READY:
            os._exit(0)  # the caller waits: Python would first take apart all modules, which takes 5 ms
        _complain(said.decode(errors="replace") or "the daemon died before the mount answered")
        return 1
    served = [] if config.device is None else [int(config.device.rpartition("/")[2])]
    close_all_but([writable, *served])  # a lock of the caller would last as long as the mount

    def ready() -> None:
        # Only now: below an automount, nobody outside the process group that mounts may look at the mount point.
        os.setsid()
        with contextlib.suppress(BrokenPipeError):  # whoever waited was killed meanwhile
            os.write(writable, READY)
        os.close(writable)

    try:
        _leave()
        directory = _open_statedir(config)
        _log_to(_log_behind(directory, environment))
        _run(config, directory, ready, Manager({}))
    except KtaskfsError as error:
        os.write(writable, error.message.encode(errors="backslashreplace"))
        return 1
    return 0


def _leave() -> None:
    """Leave the caller's directory and standard input, so that nobody waits until they are closed."""
    os.chdir("/")
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    os.dup2(null, 0)
    os.close(null)


def _log_behind(directory: PrivateDirectory, environment: Mapping[str, str]) -> logging.Handler:
    """The log of a daemon in the background: the journal if standard error leads there, else a file in the state
    directory.

    Raises TargetError.
    """
    if stderr_is_journal(environment):
        os.dup2(2, 1)
        return JournalHandler()
    try:
        return LogFile(directory)
    except OSError as error:
        raise TargetError.from_os(error, f"state directory {directory.path}") from error


def _complain(message: str) -> None:
    priority = "<3>" if stderr_is_journal(os.environ) else ""  # sd-daemon(3), SD_ERR
    for line in message.splitlines():
        print(f"{priority}ktaskfs: {line}", file=sys.stderr)
