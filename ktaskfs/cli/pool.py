"""``ktaskfs pool save``: the next boot creates the current pools of huge pages.

It writes a file for systemd-tmpfiles(8), with a line for each size of page and each NUMA node; sysctl(8) has only one
size, and no nodes. Lines with ``!`` take effect only at boot.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ktaskfs.cli.mounted import Mounted
from ktaskfs.errors import TargetError
from ktaskfs.units import parse_size

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

HEAD: Final = (
    "# The pools of huge pages that the next boot makes, as ktaskfs pool save found them. See tmpfiles.d(5).\n"
)
LINKS_MAX: Final = 40
"""Symbolic links of one path, the limit of the kernel (path_resolution(7))."""
_OF_MACHINE: Final = "/sys/kernel/mm/hugepages"
_OF_NODE: Final = "/sys/devices/system/node/node{}/hugepages"


def save(given: argparse.Namespace) -> int:
    """Write the file, and print it. Returns the exit status; raises KtaskfsError."""
    found = pools(Mounted(given.mount).read("info/hugepages"))
    text = HEAD + "".join(f"w! {path} - - - - {pages}\n" for path, pages in found)
    if given.output != "-":
        _replace(Path(given.output), text)
    print(text, end="")
    return 0


def pools(table: str) -> Iterator[tuple[str, int]]:
    """The file in sysfs and the pages of each pool, from the text of ``info/hugepages``, of the sizes that have pages.

    Surplus pages are left out: they go when they are freed. A size with pools of nodes has these instead of the
    machine's pool, also a node without pages: else it would keep what the kernel's command line gives it at boot.
    """
    header, *lines = (line.split() for line in table.splitlines())
    rows = [dict(zip(header, line, strict=True)) for line in lines]
    with_nodes = {row["size"] for row in rows if row["node"] != "-"}
    pages = [max(0, int(row["total"]) - int(row["surplus"])) for row in rows]
    with_pages = {row["size"] for row, count in zip(rows, pages, strict=True) if count}
    for row, count in zip(rows, pages, strict=True):
        if row["size"] in with_pages and (row["node"] == "-") != (row["size"] in with_nodes):
            directory = _OF_MACHINE if row["node"] == "-" else _OF_NODE.format(row["node"])
            yield f"{directory}/hugepages-{parse_size(row['size']) >> 10}kB/nr_hugepages", count


def _replace(path: Path, text: str) -> None:
    """Replace the text of a file. A reader finds the whole old text or the whole new one. A link stays a link.

    Raises TargetError: EINVAL for a device, a FIFO or the like, which a file in its place would destroy; EACCES for a
    link that somebody else has made in a directory like /tmp.
    """
    try:
        there = _followed(path)
        if there.is_dir():  # "." and "/" have no name to make another from
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        new = there.with_name(f".{there.name}.new")
        if there.exists() and not there.is_file():
            words = f"{path} is not a regular file; --output=- writes none"
            raise TargetError(words, errno=errno.EINVAL)
        there.parent.mkdir(exist_ok=True)
        new.unlink(missing_ok=True)
    except OSError as error:
        raise TargetError.from_os(error, f"write {path}") from error
    try:
        with new.open("x") as file:
            os.fchmod(file.fileno(), 0o644)
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        new.replace(there)
    except OSError as error:
        new.unlink(missing_ok=True)
        raise TargetError.from_os(error, f"write {path}") from error


def _followed(path: Path) -> Path:
    """The file to which a link leads, perhaps through others; ``path`` itself if it is none. Raises OSError.

    Like the kernel with fs.protected_symlinks, which cannot protect from a link that is read and replaced.
    """
    for _ in range(LINKS_MAX):
        if not path.is_symlink():
            return path
        above, owner = path.parent.stat(), path.lstat().st_uid
        if above.st_mode & stat.S_ISVTX and above.st_mode & stat.S_IWOTH and owner not in (os.geteuid(), above.st_uid):
            raise OSError(errno.EACCES, os.strerror(errno.EACCES))
        path = path.parent / path.readlink()
    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
