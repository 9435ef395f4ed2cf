"""The command line of ``ktaskfs``; imports nothing heavy, so that help and completion are quick."""

from __future__ import annotations

import argparse
import os
import sys
from typing import TYPE_CHECKING, Final

from ktaskfs.version import VERSION

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from _typeshed import SupportsWrite

    Commands = argparse._SubParsersAction[argparse.ArgumentParser]

DEFAULT_MOUNT: Final = "/run/ktaskfs"
"""The mount point of the service."""
SAVED_POOLS: Final = "/etc/tmpfiles.d/ktaskfs-pools.conf"
"""The file that systemd-tmpfiles(8) reads at boot."""
MOUNT_VARIABLE: Final = "KTASKFS"
MOUNT_OPTIONS: Final = ("-m", "--mount")
VERBS: Final = {
    "cancel": "end tasks after their current chunks",
    "pause": "stop tasks from starting chunks until they are resumed",
    "resume": "continue paused tasks, and finish tasks that ended early",
    "kill": "kill the workers of tasks, even in the middle of a chunk",
}
FANOUT: Final = 1024
"""Connections at a time; that many take 1.5 GiB, most of it in ssh."""
NUMBER_MOST: Final = (1 << 31) - 1
"""The maximum of a number in an option: that of a descriptor, and 68 years."""
HOST_OPTIONS: Final = ("fanout", "timeout", "ssh_options", "remote", "topology", "via", "batch", "max_failed")
"""Options that are only for --hosts."""
NAMES: Final = "name of a task, or a glob such as 'vm*'"
STATUSES: Final = (
    "exit status: 0 done; 1 failed or refused; 2 wrong command line; 3 cancelled; 4 interrupted; 130 after ^C. "
    "With several tasks: the first of 1, 4, 3, 0 that applies."
)


class _Formatter(argparse.HelpFormatter):
    """argparse makes one for each argument. The base class asks shutil for the width, and shutil imports three modules
    for compression: they take milliseconds, and memory that the daemon and its workers keep."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, width=_columns() - 2)


def _columns() -> int:
    """The width of the terminal, as shutil.get_terminal_size finds it."""
    try:
        given = int(os.environ.get("COLUMNS", ""))
    except ValueError:
        given = 0
    if given > 0:
        return given
    try:
        return os.get_terminal_size(1).columns or 80
    except OSError:  # standard output is closed, or no terminal
        return 80


def parse(arguments: Sequence[str], environment: Mapping[str, str]) -> argparse.Namespace:
    """The parsed command line. Options may stand between the words of a list, until "--"."""
    arguments = command_first(arguments)
    top = parser(environment, next(iter(arguments), None))
    given, rest = top.parse_known_args(arguments)
    words = getattr(given, "spec", getattr(given, "name", None))
    end = rest.index("--") if "--" in rest else len(rest)
    unknown = rest if words is None else [each for each in rest[:end] if each.startswith("-") and each != "-"]
    if unknown:
        takes_parameters = given.command in ("run", "set")
        parameters = [each.lstrip("-") for each in unknown if takes_parameters and "=" in each]
        hint = f"; write parameters without dashes: {' '.join(parameters)}" if parameters else ""
        given.refuse(f"unrecognized arguments: {' '.join(unknown)}{hint}")
    if words is not None:  # argparse puts those before the first option into the list
        words += rest[:end] + rest[end + 1 :]
    return given


def command_first(words: Sequence[str]) -> list[str]:
    """The words with a ``-m MOUNT`` before the command moved behind it; none if no command follows."""
    first = words[0] if words else ""
    count = 2 if first in MOUNT_OPTIONS else int(first.startswith((f"{MOUNT_OPTIONS[1]}=", MOUNT_OPTIONS[0])))
    return [words[count], *words[:count], *words[count + 1 :]] if count < len(words) else []


class _Parser(argparse.ArgumentParser):
    def _print_message(self, message: str, file: SupportsWrite[str] | None = None) -> None:
        """Raises OSError, which argparse drops since Python 3.12."""
        (file or sys.stderr).write(message)


def parser(environment: Mapping[str, str], command: str | None = None) -> argparse.ArgumentParser:
    """The parser of the command line; the default mount comes from ``environment``.

    With the first argument as ``command``, if that is one, the others are left out: they take milliseconds.
    """
    top: argparse.ArgumentParser = _Parser(
        prog="ktaskfs",
        description="Chunked, multithreaded work on huge-page memory, through a filesystem like /proc.",
        formatter_class=_Formatter,
    )
    top.add_argument("--version", action="version", version=f"ktaskfs {VERSION}")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, add in _COMMANDS.items():
        if name == command or command not in _COMMANDS:
            add(commands, environment, name)
    return top


def _command(commands: Commands, name: str, text: str, epilog: str | None = None) -> argparse.ArgumentParser:
    """A command; ``text`` is its line in the list of commands, and begins its own help."""
    description = f"{text[0].upper()}{text[1:]}."
    added = commands.add_parser(name, help=text, description=description, epilog=epilog, formatter_class=_Formatter)
    added.set_defaults(refuse=added.error)  # that of the whole command line would show its usage
    return added


def _client(
    commands: Commands, environment: Mapping[str, str], name: str, text: str, epilog: str | None = None
) -> argparse.ArgumentParser:
    """A command that uses the mounted files."""
    added = _command(commands, name, text, epilog)
    _add_place(added, environment)
    added.add_argument("--json", action="store_true", help="JSON on standard output, one object a line")
    return added


def _add_place(added: argparse.ArgumentParser, environment: Mapping[str, str]) -> None:
    added.add_argument(
        *MOUNT_OPTIONS,
        default=environment.get(MOUNT_VARIABLE) or DEFAULT_MOUNT,
        help=f"where ktaskfs is mounted (${MOUNT_VARIABLE}, or {DEFAULT_MOUNT})",
    )


def _add_hosts(added: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """The options for other hosts; None if not given."""
    group = added.add_argument_group("on other hosts (needs the Python package ClusterShell)")
    group.add_argument("--hosts", metavar="HOSTS", help="the hosts: hv1,hv7 or hv[001-512] or @GROUP of ClusterShell")
    group.add_argument("--fanout", type=_positive, metavar="N", help=f"connections at a time ({FANOUT})")
    group.add_argument("--timeout", type=_positive, metavar="S", help="watch for S seconds; the tasks go on")
    group.add_argument("--ssh-options", metavar="OPTIONS", help="options of ssh(1), in one word: '-F FILE -l USER'")
    group.add_argument("--remote", metavar="COMMAND", help="command on the hosts, such as 'sudo -n ktaskfs' (ktaskfs)")
    group.add_argument("--topology", metavar="FILE", help="use the gateways of a ClusterShell topology.conf")
    group.add_argument(
        "--via", metavar="COMMAND", help="command instead of ssh, as 'podman exec -i %%h'; %%h is the host"
    )
    return group


def _positive(text: str) -> int:
    return _number(text, 1)


def _descriptor(text: str) -> int:
    return _number(text, 0)


def _number(text: str, least: int) -> int:
    if len(text) > len(str(NUMBER_MOST)) or not text.isdecimal() or not least <= int(text) <= NUMBER_MOST:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from {least} to {NUMBER_MOST}")
    return int(text)


def _add_pool(commands: Commands, environment: Mapping[str, str], name: str) -> None:
    added = _command(commands, name, "save: make the next boot create the current pools of huge pages")
    added.add_argument("verb", choices=("save",), metavar="save", help="write the file, and print it")
    _add_place(added, environment)
    added.add_argument(
        "--output", default=SAVED_POOLS, metavar="FILE", help=f"the file to write; - writes none ({SAVED_POOLS})"
    )


def _add_quiet(added: argparse.ArgumentParser) -> None:
    added.add_argument("-q", "--quiet", action="store_true", help="show results and errors only")


def _add_run(commands: Commands, environment: Mapping[str, str], name: str) -> None:
    added = _client(commands, environment, name, "start tasks and follow them to their ends", STATUSES)
    _add_quiet(added)
    how = added.add_mutually_exclusive_group()
    how.add_argument("--detach", action="store_true", help="print the names of the tasks and exit")
    how.add_argument(
        "--files",
        action="store_true",
        help="each SPEC is a file of specs, or a directory of *.tasks files: run them line by line",
    )
    added.add_argument(
        "--if-exists",
        choices=("fail", "join", "resume", "replace", "rerun"),
        help="if a task of that name exists: fail; join: follow it; resume: follow it, and do the rest if it ended "
        "early; replace: replace it if it has ended; rerun: follow it if it is unfinished, else replace it "
        "(default: fail, and rerun with --hosts)",
    )
    added.add_argument("--plan", action="store_true", help="only check, and show what would be done")
    hosts = _add_hosts(added)
    hosts.add_argument(
        "--batch",
        metavar="N|P%",
        help="start N hosts, or P%% of them, at a time; start the next batch when these are done",
    )
    hosts.add_argument("--max-failed", type=_positive, metavar="N", help="start no more hosts after N failures")
    added.add_argument(
        "spec",
        nargs="+",
        metavar="SPEC",
        help="OPERATION KEY=VALUE ..., in words or as one; - reads specs, one a line, from standard input. "
        "operations/ in the mount lists the operations",
    )


def _add_wait(commands: Commands, environment: Mapping[str, str], name: str) -> None:
    added = _client(commands, environment, name, "follow tasks to their ends; ^C does not stop them", STATUSES)
    _add_quiet(added)
    _add_names(added)


def _add_names(added: argparse.ArgumentParser) -> None:
    added.add_argument("name", nargs="+", metavar="NAME", help=NAMES)


def _add_ls(commands: Commands, environment: Mapping[str, str], name: str) -> None:
    added = _client(commands, environment, name, "list tasks, unfinished ones first")
    added.add_argument("name", nargs="*", metavar="NAME", help=NAMES)
    _add_hosts(added)


def _add_show(commands: Commands, environment: Mapping[str, str], name: str) -> None:
    _add_names(_client(commands, environment, name, "show the status, threads and result of tasks"))


def _add_verb(commands: Commands, environment: Mapping[str, str], name: str) -> None:
    _add_names(_client(commands, environment, name, VERBS[name]))


def _add_set(commands: Commands, environment: Mapping[str, str], name: str) -> None:
    added = _client(commands, environment, name, "set parameters of tasks")
    keys = "then max_threads=, nice= or rate_max=, and before the start of a task any parameter"
    added.add_argument("name", nargs="+", metavar="NAME|KEY=VALUE", help=f"{NAMES}; {keys}")


def _add_events(commands: Commands, environment: Mapping[str, str], name: str) -> None:
    added = _client(commands, environment, name, "show state changes of tasks until ^C")
    added.add_argument("name", nargs="*", metavar="NAME", help=NAMES)


def _add_doctor(commands: Commands, environment: Mapping[str, str], name: str) -> None:
    text = "find problems of this machine, and print commands that fix them"
    _add_hosts(_client(commands, environment, name, text, "exit status: 0 no problem found; 1 a problem found"))


def _add_completion(commands: Commands, _: Mapping[str, str], name: str) -> None:
    added = _command(commands, name, "print the completion script of a shell")
    added.add_argument(
        "shell",
        choices=("bash", "zsh", "fish", "words"),
        metavar="bash|zsh|fish",
        help="the shell; `words WORD...` prints candidates for the last word, for other shells",
    )
    words = added.add_argument("words", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    words.required = False  # else the complaint about a missing shell names it


def _add_top(commands: Commands, environment: Mapping[str, str], name: str) -> None:
    _add_place(_command(commands, name, "show all tasks on a screen, with keys to change them"), environment)


def _add_mount(commands: Commands, _: Mapping[str, str], name: str) -> None:
    mount = _command(commands, name, "mount the filesystem; umount(8) or fusermount3 -u unmounts it")
    mount.add_argument("--foreground", action="store_true", help="stay in the foreground and log to standard error")
    mount.add_argument("--fake", action="store_true", help="check the options and the configuration file, and exit")
    mount.add_argument("--store", action="store_true", help="mount, and give the mount to systemd for a later daemon")
    mount.add_argument("--keep", action="store_true", help="let systemd keep the mount for the next daemon")
    mount.add_argument(
        "--fd",
        type=_descriptor,
        metavar="N",
        help="serve descriptor N, an open /dev/fuse that is mounted on MOUNTPOINT",
    )
    mount.add_argument(
        "-o",
        dest="options",
        action="append",
        default=[],
        metavar="OPTIONS",
        help="comma-separated: uid= gid= mode= hidepid= statedir= config= max_threads= cpu_percent= nice= ...",
    )
    mount.add_argument("mountpoint", metavar="MOUNTPOINT", help="a directory")


_COMMANDS: Final[Mapping[str, Callable[[Commands, Mapping[str, str], str], None]]] = {
    "run": _add_run,
    "wait": _add_wait,
    "ls": _add_ls,
    "show": _add_show,
    **dict.fromkeys(VERBS, _add_verb),
    "set": _add_set,
    "events": _add_events,
    "doctor": _add_doctor,
    "pool": _add_pool,
    "completion": _add_completion,
    "top": _add_top,
    "mount": _add_mount,
}
"""In the order of the help."""
