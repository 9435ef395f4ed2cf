"""The command line of ``ktaskfs``; imports nothing heavy, so that help and completion are quick."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Final

from ktaskfs.version import VERSION

if TYPE_CHECKING:
    from collections.abc import Mapping

    Commands = argparse._SubParsersAction[argparse.ArgumentParser]

DEFAULT_MOUNT: Final = "/run/ktaskfs"
"""Where the service mounts."""
SAVED_POOLS: Final = "/etc/tmpfiles.d/ktaskfs-pools.conf"
"""What systemd-tmpfiles(8) reads at boot."""
MOUNT_VARIABLE: Final = "KTASKFS"
VERBS: Final = {
    "cancel": "end tasks after the chunks at work",
    "pause": "have tasks begin no further chunk until they are resumed",
    "resume": "have paused tasks go on, and tasks that ended early do the rest",
    "kill": "kill the workers of tasks, even in the middle of a chunk",
}
FANOUT: Final = 1024
"""Connections at a time; that many take 1.5 GiB, most of it in ssh."""
HOST_OPTIONS: Final = ("fanout", "timeout", "ssh_options", "remote", "topology", "via", "batch", "max_failed")
"""Of use with --hosts alone."""
NAMES: Final = "name of a task, or a glob such as 'vm*'"
STATUSES: Final = (
    "exit status: 0 done; 1 failed or refused; 2 wrong command line; 3 cancelled; 4 interrupted; 130 after ^C. "
    "Of several tasks the first of 1, 4, 3, 0 that one of them has."
)


def parser(environment: Mapping[str, str]) -> argparse.ArgumentParser:
    """The whole command line; the mount is that of ``environment`` where none is given."""
    top = argparse.ArgumentParser(
        prog="ktaskfs", description="Chunked, multithreaded work on huge-page memory, through a filesystem like /proc."
    )
    top.add_argument("--version", action="version", version=f"ktaskfs {VERSION}")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_run(commands, environment)
    _add_wait(commands, environment)
    listed = _client(commands, environment, "ls", "list tasks, those at work first")
    listed.add_argument("name", nargs="*", metavar="NAME", help=NAMES)
    _add_hosts(listed)
    _add_names(_client(commands, environment, "show", "tell all of tasks: status, threads, result"))
    for verb, text in VERBS.items():
        _add_names(_client(commands, environment, verb, text))
    assigned = _client(commands, environment, "set", "set parameters of tasks")
    assigned.add_argument("name", nargs="+", metavar="NAME... KEY=VALUE", help=f"{NAMES}; then max_threads=2 and so on")
    followed = _client(commands, environment, "events", "show changes of state of tasks as they come, until ^C")
    followed.add_argument("name", nargs="*", metavar="NAME", help=NAMES)
    examined = _client(
        commands,
        environment,
        "doctor",
        "tell what stands between this machine and its work, and what mends it",
        "exit status: 0 nothing is wrong; 1 something is",
    )
    _add_hosts(examined)
    _add_pool(commands, environment)
    completed = commands.add_parser("completion", help="print what makes a shell complete the command line")
    completed.add_argument(
        "shell",
        choices=("bash", "zsh", "fish", "words"),
        metavar="bash|zsh|fish",
        help="the shell; `words WORD...` prints what may stand for the last word, for shells to come",
    )
    completed.add_argument("words", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    shown = commands.add_parser("top", help="show all tasks on a screen, with keys to change them")
    _add_place(shown, environment)
    _add_mount(commands)
    return top


def _client(
    commands: Commands, environment: Mapping[str, str], name: str, text: str, epilog: str | None = None
) -> argparse.ArgumentParser:
    """A command that uses the mounted files."""
    added = commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.", epilog=epilog)
    _add_place(added, environment)
    added.add_argument("--json", action="store_true", help="JSON on standard output, one object a line")
    return added


def _add_place(added: argparse.ArgumentParser, environment: Mapping[str, str]) -> None:
    added.add_argument(
        "-m",
        "--mount",
        default=environment.get(MOUNT_VARIABLE) or DEFAULT_MOUNT,
        help=f"where ktaskfs is mounted (${MOUNT_VARIABLE}, or {DEFAULT_MOUNT})",
    )


def _add_hosts(added: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """The options with which the command is done on other hosts; None where they are not given."""
    group = added.add_argument_group("on other hosts (needs the Python package ClusterShell)")
    group.add_argument("--hosts", metavar="HOSTS", help="the hosts: hv1,hv7 or hv[001-512] or @GROUP of ClusterShell")
    group.add_argument("--fanout", type=_positive, metavar="N", help=f"connections at a time ({FANOUT})")
    group.add_argument("--timeout", type=_positive, metavar="S", help="watch for S seconds; the tasks go on")
    group.add_argument("--ssh-options", metavar="OPTIONS", help="options of ssh(1), in one word: '-F FILE -l USER'")
    group.add_argument("--remote", metavar="COMMAND", help="the command there, as 'sudo -n ktaskfs' (ktaskfs)")
    group.add_argument("--topology", metavar="FILE", help="go through the gateways in a topology.conf of ClusterShell")
    group.add_argument("--via", metavar="COMMAND", help="reach host %%h by this instead of ssh: 'podman exec -i %%h'")
    return group


def _positive(text: str) -> int:
    if not (text.isdecimal() and int(text)):
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 1 on")
    return int(text)


def _add_pool(commands: Commands, environment: Mapping[str, str]) -> None:
    text = "save: have the next boot make the pools of huge pages that there are now"
    added = commands.add_parser("pool", help=text, description=f"{text[0].upper()}{text[1:]}.")
    added.add_argument("verb", choices=("save",), metavar="save", help="write the file, and print it")
    _add_place(added, environment)
    added.add_argument(
        "--output", default=SAVED_POOLS, metavar="FILE", help=f"what to write; - for nothing ({SAVED_POOLS})"
    )


def _add_quiet(added: argparse.ArgumentParser) -> None:
    added.add_argument("-q", "--quiet", action="store_true", help="show results and errors only")


def _add_run(commands: Commands, environment: Mapping[str, str]) -> None:
    added = _client(commands, environment, "run", "start tasks and follow them to their ends", STATUSES)
    _add_quiet(added)
    how = added.add_mutually_exclusive_group()
    how.add_argument("--detach", action="store_true", help="print the names of the tasks and end")
    how.add_argument(
        "--files",
        action="store_true",
        help="each SPEC is a file of specs, or a directory of files *.tasks: carry out one line after another",
    )
    added.add_argument(
        "--if-exists",
        choices=("fail", "join", "resume", "replace", "rerun"),
        help="if there is a task of that name: fail; follow it; follow it, and do the rest if it ended early; "
        "replace it if it has ended; or follow it if it is at work, and replace it if it has ended "
        "(default: fail, and rerun with --hosts)",
    )
    added.add_argument("--plan", action="store_true", help="only check, and tell what there is to do")
    hosts = _add_hosts(added)
    hosts.add_argument(
        "--batch",
        metavar="N|P%",
        help="do so many hosts, or this part of all, and begin with the next when these are done",
    )
    hosts.add_argument(
        "--max-failed", type=_positive, metavar="N", help="begin with no further host once N have failed"
    )
    added.add_argument(
        "spec",
        nargs="+",
        metavar="SPEC",
        help="OPERATION KEY=VALUE ..., in words or as one; - reads specs, one a line, from standard input. "
        "operations/ of the mount says what there is",
    )


def _add_wait(commands: Commands, environment: Mapping[str, str]) -> None:
    added = _client(commands, environment, "wait", "follow tasks to their ends; ^C leaves them at work", STATUSES)
    _add_quiet(added)
    _add_names(added)


def _add_names(added: argparse.ArgumentParser) -> None:
    added.add_argument("name", nargs="+", metavar="NAME", help=NAMES)


def _add_mount(commands: Commands) -> None:
    mount = commands.add_parser("mount", help="mount the filesystem; umount(8) or fusermount3 -u ends it")
    mount.add_argument("--foreground", action="store_true", help="stay in the foreground and log to standard error")
    mount.add_argument("--fake", action="store_true", help="check the options and the configuration file, and end")
    mount.add_argument("--store", action="store_true", help="mount, and leave it with systemd for the daemon to come")
    mount.add_argument(
        "--keep", action="store_true", help="have systemd keep the mount for the next daemon, which takes it over"
    )
    mount.add_argument(
        "--fd", type=int, metavar="N", help="serve the open /dev/fuse N, which is mounted on MOUNTPOINT already"
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
