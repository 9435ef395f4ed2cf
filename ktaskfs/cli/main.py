"""The command ``ktaskfs``."""

from __future__ import annotations

import io
import os
import signal
import sys
from typing import TYPE_CHECKING

from ktaskfs.cli.arguments import HOST_OPTIONS, parser
from ktaskfs.cli.complain import complain
from ktaskfs.errors import InvalidValue, KtaskfsError, NotSupported

if TYPE_CHECKING:
    import argparse


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    given = parser(os.environ).parse_args(arguments)
    if given.command == "mount":
        from ktaskfs.cli.mount import mount

        return mount(given, os.environ)
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # as head(1) expects of what it reads from
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        return _client(given)
    except KtaskfsError as error:
        complain(error)
        return 1
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


def _client(given: argparse.Namespace) -> int:
    """Run a command that uses the mounted files; each imports what it needs. Raises KtaskfsError."""
    if getattr(given, "hosts", None) is not None:
        return _on_hosts(given)
    for option in HOST_OPTIONS:
        if getattr(given, option, None) is not None:
            raise InvalidValue(f"--{option.replace('_', '-')} is of use with --hosts alone")
    if (
        given.command not in ("run", "wait", "events", "top")
        and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    ):
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # ends it also while it waits for a daemon that is stopped
    match given.command:
        case "run" | "wait":
            from ktaskfs.cli import run

            return run.run(given) if given.command == "run" else run.wait(given)
        case "ls" | "show":
            from ktaskfs.cli import listing

            return listing.ls(given) if given.command == "ls" else listing.show(given)
        case "events":
            from ktaskfs.cli.events import events

            return events(given)
        case "completion":
            from ktaskfs.cli.completion import completion

            return completion(given, parser(os.environ))
        case "doctor":
            from ktaskfs.cli.doctor import doctor

            return doctor(given)
        case "pool":
            from ktaskfs.cli.pool import save

            return save(given)
        case "top":
            return _top(given.mount)
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
        raise NotSupported(f"--hosts needs {error.name}: pip install 'ktaskfs[fleet]'") from error
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
        raise NotSupported(f"ktaskfs top needs {error.name}: pip install 'ktaskfs[top]'") from error
    return top(mount)


if __name__ == "__main__":
    sys.exit(main())
