"""The command ``ktaskfs``."""

from __future__ import annotations

import argparse
import os
import sys

from ktaskfs.version import VERSION


def parser() -> argparse.ArgumentParser:
    """The command line; imports nothing heavy, so that help and completion are quick."""
    top = argparse.ArgumentParser(
        prog="ktaskfs", description="Chunked, multithreaded work on huge-page memory, through a filesystem like /proc."
    )
    top.add_argument("--version", action="version", version=f"ktaskfs {VERSION}")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    mount = commands.add_parser("mount", help="mount the filesystem; umount(8) or fusermount3 -u ends it")
    mount.add_argument("--foreground", action="store_true", help="stay in the foreground and log to standard error")
    mount.add_argument("--fake", action="store_true", help="check the options and the configuration file, and end")
    mount.add_argument("--store", action="store_true", help="mount, and leave it with systemd for the daemon to come")
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
    return top


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    given = parser().parse_args(arguments)
    from ktaskfs.cli.mount import mount

    return mount(given, os.environ)


if __name__ == "__main__":
    sys.exit(main())
