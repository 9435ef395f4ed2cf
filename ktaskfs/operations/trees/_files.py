"""The files of a tree as one sequence of positions, for all operations on trees.

Each file takes its size and a constant, so that a chunk has many small files, and empty ones have a place.
"""

from __future__ import annotations

import bisect
import errno
import hashlib
import os
import stat
from array import array
from itertools import pairwise
from typing import TYPE_CHECKING, Final, NamedTuple, TypeVar

from ktaskfs.errors import NotSupported, TargetError
from ktaskfs.host import syscalls
from ktaskfs.host.page_cache import is_of_memory
from ktaskfs.host.presence import data_extents, union
from ktaskfs.host.target import refuse_own_descriptors, size_of, time_of_change
from ktaskfs.host.tree import Tree, Walk
from ktaskfs.operations.base.line import Line
from ktaskfs.operations.base.parameters import FLAG, PATH, TaskParameters, parameter
from ktaskfs.span import Span

if TYPE_CHECKING:
    from collections.abc import Container, Iterator

    from ktaskfs.host.kernel import Kernel
    from ktaskfs.operations.base.plan import Preparation

COST: Final = 4 << 10
"""Bytes for a file besides its size; the cost of an open, in bytes of a large file, is higher."""
FILES_MAX: Final = 1 << 24
"""Files that one task takes: the list has some 60 bytes of each."""
ALIGN: Final = 2 << 20
"""Edges inside a file are multiples of it: the cache may hold so much in one piece, and drops all of that or none."""
TOTAL_MAX: Final = 2**64 - 1
"""Units of all files: sparse files can have 2^63 bytes each."""
KIND_SHIFT: Final = 12
"""Bits below the kind in st_mode."""
_TIMES: Final = 2**64
"""Times are kept modulo this number of ns: filesystems know years after 2262, and before 1677."""


class TreeParameters(TaskParameters):
    """A directory, or one file."""

    path: str = parameter(PATH, "the directory (or one regular file, or block device)", is_target=True)
    cross_mounts: bool = parameter(FLAG, "enter filesystems that are mounted below it", default=False)
    links: bool = parameter(FLAG, "follow symbolic links, even out of the directory", default=False)


P = TypeVar("P", bound=TreeParameters)


class Piece(NamedTuple):
    """The bytes from ``start`` to ``end`` of the file of that number, which had ``size`` bytes when it was found."""

    file: int
    start: int
    end: int
    size: int

    @property
    def extent(self) -> Span:
        return Span(self.start, self.end)

    @property
    def is_last(self) -> bool:
        """Whether the file ends here."""
        return self.end == self.size


class Which(NamedTuple):
    """The entries of a tree in a list, and the room for each file.

    Positions count units of ``unit`` bytes; a file takes those that its size begins, and ``cost`` more after them.
    Edges inside a file are multiples of ``align`` bytes.
    ``once``: files with several names once. ``wanted``: only files with such a ``name``.
    ``everything``: also directories, links that are not followed and the like, each of size 0.
    """

    cost: int = COST
    unit: int = 1
    align: int = ALIGN
    once: bool = True
    everything: bool = False
    wanted: Container[str] | None = None


class FileList:
    """The regular files of a tree, in the order of the walk, which is done at once.

    Raises TargetError: E2BIG for more than FILES_MAX files, EFBIG for more than TOTAL_MAX units, ECANCELED if nobody
    waits any more, and what the system says if the directory itself cannot be read.
    """

    def __init__(self, kernel: Kernel, tree: Tree, path: str, which: Which) -> None:
        self.tree = tree
        self._given = path
        self._base = os.path.basename(path)
        self.kernel = kernel
        self._unit = which.unit
        self._align = which.align
        self._ends = array("Q")
        self._line = Line(self._ends)
        self._sizes = array("Q")
        self._times = array("Q")
        self._kinds = bytearray()
        self.allocated = 0
        """Bytes that the files have without their holes; too little where the filesystem compresses them."""
        device = os.fstat(tree.fd).st_dev
        self.on_one_device = True
        """Whether all files have the device of the directory: others may be of another filesystem."""
        self._names = bytearray()
        self._name_ends = array("Q")
        self._directories: list[str] = []
        self._first_of: array[int] = array("Q")
        """For each of these directories, the first of a run of files that are in it."""
        digest = hashlib.blake2b(digest_size=8, usedforsecurity=False)
        digest.update(b"%d %d %d\0" % (which.cost, which.unit, which.align))
        self.walk = Walk(kernel, tree, which.once, which.everything)
        total = 0
        for directory, name, status in self.walk:
            if which.wanted is not None and (self._base if name == "." else directory + name) not in which.wanted:
                continue
            if not self._directories or self._directories[-1] != directory:
                self._directories.append(directory)
                self._first_of.append(len(self._ends))
            encoded = os.fsencode(name)
            size = self._size_of(status)
            total += -(-size // which.unit) + which.cost
            if total > TOTAL_MAX:
                raise TargetError(f"the files of {path} are too large for one task", errno=errno.EFBIG)
            self._ends.append(total)
            self._sizes.append(size)
            self._times.append((changed := time_of_change(status)) % _TIMES)
            self.on_one_device &= status.st_dev == device
            self._kinds.append(stat.S_IFMT(status.st_mode) >> KIND_SHIFT)
            self.allocated += min(size, status.st_blocks * 512)
            self._names += encoded
            self._name_ends.append(len(self._names))
            digest.update(b"%b/%b\0%d %d\0" % (os.fsencode(directory), encoded, size, changed))
            if len(self._ends) > FILES_MAX:
                raise TargetError(f"{path} has more than {FILES_MAX} files", errno=errno.E2BIG)
        self.total = total
        """Units of all files."""
        self.fingerprint = int.from_bytes(digest.digest(), "little")
        """Another one for other files, by name, size and time of the last change, and for other rules of positions."""
        for number, left in self.walk.left[:1]:
            if left == ".":
                raise TargetError(f"{path} cannot be read: {os.strerror(number)}", errno=number)

    def _size_of(self, status: os.stat_result) -> int:
        if not stat.S_ISBLK(status.st_mode) or not self.tree.is_file:
            return status.st_size if stat.S_ISREG(status.st_mode) else 0
        try:
            fd = self.tree.open_regular(self.kernel, ".")
        except OSError as error:
            raise TargetError.from_os(error, f"open {self._given}") from error
        try:
            return size_of(fd)
        finally:
            os.close(fd)

    def __len__(self) -> int:
        return len(self._ends)

    @property
    def bytes(self) -> int:
        """The sizes of all files."""
        return sum(self._sizes)

    def bytes_of(self, least: int) -> int:
        """The sizes of all files of at least ``least`` bytes."""
        return sum(size for size in self._sizes if size >= least)

    def bytes_in(self, page: int) -> int:
        """The sizes of all files in whole pages of ``page`` bytes."""
        return sum(-(-size // page) for size in self._sizes) * page

    def data_bytes_in(self, page: int) -> int:
        """Bytes of the pages of ``page`` bytes that have data, of all files; it opens those of several pages. Raises
        TargetError, ECANCELED, if nobody waits any more."""
        total = 0
        for index, size in enumerate(self._sizes):
            if 0 < size <= page:
                total += page
            elif size:
                self.walk.go_on()
                total += self.data_bytes(Piece(index, 0, size, size), page)
        return total

    def size(self, index: int) -> int:
        """Bytes that a file had when it was found."""
        return self._sizes[index]

    def kind(self, index: int) -> int:
        """The file type, S_IFMT of inode(7): S_IFREG, S_IFDIR, S_IFLNK …"""
        return self._kinds[index] << KIND_SHIFT

    def is_as_found(self, index: int, status: os.stat_result) -> bool:
        """Whether ``status`` has the size and the time of change that the file had when it was found."""
        return (status.st_size, status.st_mtime_ns % _TIMES) == (self._sizes[index], self._times[index])

    def path(self, index: int) -> str:
        """The path of a file below the directory; ``.`` if the tree is one file."""
        return self._directories[bisect.bisect_right(self._first_of, index) - 1] + self.base(index)

    def base(self, index: int) -> str:
        """The last component of ``path``."""
        start = self._name_ends[index - 1] if index else 0
        return os.fsdecode(bytes(self._names[start : self._name_ends[index]]))

    def directories(self) -> dict[str, list[range]]:
        """The numbers of the files in each directory, by its path as a prefix."""
        found: dict[str, list[range]] = {}
        for directory, (first, end) in zip(self._directories, pairwise([*self._first_of, len(self)]), strict=True):
            found.setdefault(directory, []).append(range(first, end))
        return found

    def name(self, index: int) -> str:
        """As ``path``; the file's own name if the tree is one file."""
        path = self.path(index)
        return self._base if path == "." else path

    def open(self, index: int) -> int:
        """The file, open for reading; raises OSError as ``Tree.open_regular``."""
        return self.tree.open_regular(self.kernel, self.path(index))

    def open_data(self, index: int) -> int:
        """The file, open to read all of it; raises OSError as ``Tree.open_data``."""
        return self.tree.open_data(self.kernel, self.path(index))

    def data_bytes(self, piece: Piece, page: int) -> int:
        """Bytes of the pages of ``page`` bytes with data in a piece; 0 if the file cannot be read."""
        if self.kind(piece.file) != stat.S_IFREG:
            return 0
        try:
            fd = self.open(piece.file)
            try:
                pages = (run.widened(page) for run in data_extents(fd, piece.start, piece.end))
                return sum(run.size for run in union(pages))
            finally:
                os.close(fd)
        except OSError:
            return 0

    def pieces(self, start: int, end: int, page: int = 1) -> Iterator[Piece]:
        """The ranges between two positions. Each byte, and each empty file, is in one chunk whatever the chunks are.

        Edges inside a file are also multiples of ``page``, a power of two.
        """
        align = max(self._align, page)
        for index, (first, last) in self._line.pieces(start, end):
            size = self._sizes[index]
            if not first and last * self._unit >= size:  # all of it, as of most small files
                low, high = 0, size
            else:
                low, high = _edge(first, self._unit, size, align), _edge(last, self._unit, size, align)
            if low < high or (not size and not first):
                yield Piece(index, low, high, size)

    def whole_files(self, start: int, end: int) -> Iterator[Piece]:
        """The whole files that begin between two positions."""
        return (Piece(index, 0, self._sizes[index], self._sizes[index]) for index in self.begun(start, end))

    def begun(self, start: int, end: int) -> range:
        """The files that begin between two positions."""
        first, last = (bisect.bisect_left(self._ends, each) + 1 if each else 0 for each in (start, end))
        return range(first, min(last, len(self)))


def _edge(units: int, unit: int, size: int, align: int) -> int:
    """A place in a file, rounded down to where a piece may begin or end."""
    place = units * unit
    return size if place >= size else place - place % align


_ORDINARY: Final = Which()


def list_files(
    preparation: Preparation[P], which: Which = _ORDINARY, *, path: str | None = None, memory: bool = True
) -> FileList:
    """The files below ``path``, by default the parameter, as FileList.

    Raises as FileList, TargetError (ELOOP for a link that is not to be followed), NotSupported for files of memory
    unless ``memory``.
    """
    path = preparation.parameters.path if path is None else path
    tree = open_tree(preparation, path)
    if not memory and is_of_memory(tree.fd):
        raise NotSupported(f"{path} is on a memory filesystem: its pages exist nowhere else")
    return FileList(preparation.kernel, tree, path, which)


def open_tree(preparation: Preparation[P], path: str) -> Tree:
    """The directory or file at ``path``. Raises TargetError and InvalidValue."""
    links = preparation.parameters.links
    if links:
        refuse_own_descriptors(path)
    try:
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC | (0 if links else os.O_NOFOLLOW))
    except OSError as error:
        raise TargetError.from_os(error, f"open {path}") from error
    preparation.callback(os.close, fd)
    mode = os.fstat(fd).st_mode
    if stat.S_ISLNK(mode):
        text = f"{path} is a link; links=1 follows links"
        raise TargetError(text, errno=errno.ELOOP)
    if not any(is_kind(mode) for is_kind in (stat.S_ISDIR, stat.S_ISREG, stat.S_ISBLK)):
        raise TargetError(f"{path} is neither a directory nor a regular file", errno=errno.EINVAL)
    return Tree(fd, preparation.parameters.cross_mounts, links)


def is_ordinary(path: str) -> bool:
    """Whether ``path`` is a directory, but not of huge pages, a block device, or a regular file that is not memory."""
    try:
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:  # the later open reports the error
        return False
    try:
        mode = os.fstat(fd).st_mode
        if stat.S_ISDIR(mode):
            return syscalls.filesystem_magic(fd) != syscalls.HUGETLBFS_MAGIC
        return stat.S_ISBLK(mode) or (stat.S_ISREG(mode) and not is_of_memory(fd))
    except OSError:  # the server of a FUSE has died: listing the files reports it
        return True
    finally:
        os.close(fd)


def is_directory(path: str | None) -> bool:
    """Whether ``path`` leads to a directory; not if there is none, as in a spec for the file of a process."""
    return path is not None and os.path.isdir(path)


def require_directory(tree: Tree, path: str, other: str) -> None:
    """Raises TargetError (ENOTDIR) for a tree that is one file, while ``other`` is a directory."""
    if tree.is_file:
        raise TargetError(f"{path} is not a directory, but {other} is", errno=errno.ENOTDIR)


def work_on(files: FileList) -> Span:
    """All positions of a list."""
    return Span(0, files.total)
