"""The command ``ktaskfs``."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import sys
from typing import TYPE_CHECKING

from ktaskfs.cli.complain import complain
from ktaskfs.errors import KtaskfsError, NotSupported, TargetError, WrongCommandLine

if TYPE_CHECKING:
    import argparse


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    handler = signal.getsignal(signal.SIGINT)
    if handler is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # ^C ends it at once, until the command or the daemon handles it
    from ktaskfs.cli.arguments import parse

    arguments = sys.argv[1:] if arguments is None else arguments
    _open_closed_streams()
    pipe = signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # so that the command ends when head(1) has read enough
    try:
        given = parse(arguments, os.environ)
    except SystemExit as end:  # after --help, or a wrong command line
        return _flushed(int(end.code or 0))
    except OSError as error:
        return _flushed(_complain_of_system(error))
    if given.command == "mount":
        from ktaskfs.cli.mount import mount

        signal.signal(signal.SIGPIPE, pipe)
        return mount(given, os.environ)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    process = os.getpid()
    try:
        signal.signal(signal.SIGINT, handler)
        status = _client(given)
    except KtaskfsError as error:
        complain(error)
        status = 2 if isinstance(error, WrongCommandLine) else 1
    except OSError as error:
        status = _complain_of_system(error)
    except KeyboardInterrupt:
        status = 128 + signal.SIGINT
    status = _flushed(status)
    if os.getpid() != process:  # Python would take apart all modules, and copy their memory for that
        os._exit(status)
    return status


def _flushed(status: int) -> int:
    """Flush the standard streams. Returns ``status``, or 1 if the system refuses that."""
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except OSError as error:
        status = _complain_of_system(error)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # Python tries again at its end, and has a status of its own
    return status


def _complain_of_system(error: OSError) -> int:
    """Say what the system refuses, a full disk for example; returns the exit status."""
    with contextlib.suppress(OSError):  # it may have refused to show a complaint
        complain(TargetError.from_os(error, error.filename or "standard output"))
    return 1


def _open_closed_streams() -> None:
    """Open /dev/null in the place of closed standard streams, so that no file of the mount takes their descriptors."""
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # programs need them, too
    sys.stdout = sys.stdout or os.fdopen(1, "w", encoding="utf-8", closefd=False)
    sys.stderr = sys.stderr or os.fdopen(2, "w", encoding="utf-8", closefd=False)
    sys.stdin = sys.stdin or os.fdopen(0, encoding="utf-8", closefd=False)


def _client(given: argparse.Namespace) -> int:
    """Run a command that uses the mounted files; each imports what it needs. Raises KtaskfsError."""
    from ktaskfs.cli.arguments import HOST_OPTIONS

    if getattr(given, "hosts", None) is not None:
        return _on_hosts(given)
    for option in HOST_OPTIONS:
        if getattr(given, option, None) is not None:
            raise WrongCommandLine(f"--{option.replace('_', '-')} needs --hosts")
    match given.command:
        case "run" | "wait":
            from ktaskfs.cli import run

            return run.run(given) if given.command == "run" else run.wait(given)
        case "top":
            return _top(given.mount)
        case _:
            return _ended_by_interrupt(given)


def _ended_by_interrupt(given: argparse.Namespace) -> int:
    """Run a command that ^C ends at once, even while it waits for a stopped daemon. Raises KtaskfsError."""
    from ktaskfs.cli.arguments import VERBS, parser
    from ktaskfs.cli.watcher import fork_for_one

    acts = given.command in (*VERBS, "set")
    interrupts = fork_for_one("the command may take effect anyway: see ktaskfs ls" if acts else "try again later")
    match given.command:
        case "ls" | "show":
            from ktaskfs.cli import listing

            return listing.ls(given) if given.command == "ls" else listing.show(given)
        case "events":
            from ktaskfs.cli.events import events

            return events(given, interrupts)
        case "completion":
            from ktaskfs.cli.completion import completion

            return completion(given, parser(os.environ))
        case "doctor":
            from ktaskfs.cli.doctor import doctor

            return doctor(given)
        case "pool":
            from ktaskfs.cli.pool import save

            return save(given)
        case "set":
            from ktaskfs.cli.act import assign

            return assign(given)
        case _:  # a verb
            from ktaskfs.cli.act import act

            return act(given)


def _on_hosts(given: argparse.Namespace) -> int:
    try:
        from ktaskfs.cli.fleet import ask, watch
    except ModuleNotFoundError as error:
        ways = "apt install python3-clustershell, or pipx inject ktaskfs ClusterShell"
        raise NotSupported(f"--hosts needs {error.name}: {ways}") from error
    match given.command:
        case "run":
            return watch.run(given)
        case "ls":
            return ask.ls(given)
        case _:
            return ask.doctor(given)


def _top(mount: str) -> int:
    try:
        from ktaskfs.cli.top import top
    except ModuleNotFoundError as error:
        raise NotSupported(f"ktaskfs top needs {error.name}: pipx inject ktaskfs textual") from error
    return top(mount)


if __name__ == "__main__":
    sys.exit(main())
