"""Many whole files of memory as one sequence of positions: the files of a directory on hugetlbfs, or of a pattern.

Each takes its size, in whole pages. It is opened again for each chunk, because there may be more files than
descriptors.
"""

from __future__ import annotations

import bisect
import contextlib
import errno
import glob
import os
import stat
import threading
from collections import Counter
from itertools import accumulate
from typing import TYPE_CHECKING, Final, NamedTuple, TypeVar

from ktaskfs.errors import InvalidValue, TargetError
from ktaskfs.host.target import MEMORY, Target, open_target
from ktaskfs.host.tree import Tree, Walk
from ktaskfs.operations.ranges._range import RangeParameters
from ktaskfs.span import Span
from ktaskfs.units import format_size

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from ktaskfs.host.kernel import Kernel
    from ktaskfs.operations.base.plan import Preparation

FILES_MAX: Final = 1 << 16
"""Files that one task takes; the list has some 400 bytes of each."""

P = TypeVar("P", bound=RangeParameters)


class One(NamedTuple):
    """A file of the list: its path, device and inode, its length in bytes, and that in whole pages."""

    path: str
    identity: tuple[int, int]
    length: int
    size: int


class ManyFiles:
    """The files of one task, all with pages of ``page_size`` bytes."""

    def __init__(self, kernel: Kernel, files: Sequence[One], page_size: int, *, write: bool) -> None:
        self.files = files
        self.page_size = page_size
        self._kernel = kernel
        self._write = write
        self._ends = list(accumulate(each.size for each in files))
        self._lock = threading.Lock()
        self._gone = set[int]()  # guarded by _lock

    @property
    def extent(self) -> Span:
        """All positions, in bytes."""
        return Span(0, self._ends[-1] if self._ends else 0)

    def pieces(self, start: int, end: int) -> Iterator[tuple[int, Target, Span]]:
        """The files between two positions: number, open file, and the bytes in it.

        Raises TargetError. Skips removed and replaced files. A file that became shorter ends earlier.
        """
        index = bisect.bisect_right(self._ends, start)
        while index < len(self.files) and (begin := self._ends[index] - self.files[index].size) < end:
            with self.opened(index) as target:
                if target is not None:
                    size = -(-target.size() // self.page_size) * self.page_size
                    piece = Span(max(start - begin, 0), min(end - begin, self.files[index].size, size))
                    if piece.size > 0:
                        yield index, target, piece
            index += 1

    @contextlib.contextmanager
    def opened(self, index: int) -> Iterator[Target | None]:
        """The file of that number, or None if its name now means another file. Raises TargetError."""
        target = None
        try:
            target = open_target(self._kernel, self.files[index].path, kinds=MEMORY, write=self._write)
        except TargetError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTDIR):
                raise
        try:
            if target is None or _identity(os.fstat(target.fd)) != self.files[index].identity:
                with self._lock:
                    self._gone.add(index)
                yield None
            else:
                yield target
        finally:
            if target is not None:
                target.close()

    @property
    def counts(self) -> dict[str, int]:
        """For the result."""
        return {"files": len(self.files), "gone": len(self._gone), "page_size": self.page_size}


def open_many(preparation: Preparation[P], check: Callable[[Target], None], *, write: bool = True) -> ManyFiles:
    """The files of memory for ``path``; ``check`` is called with each open file.

    For a directory those below it, on the same mount, without links. Raises InvalidValue for files with pages of
    different sizes and for a range in them; TargetError: ENOENT where nothing matches, E2BIG; and as ``open_target``
    and ``check``.
    """
    parameters = preparation.parameters
    if parameters.offset or parameters.length is not None:
        raise InvalidValue(f"{parameters.path} stands for many files: leave out offset and length")
    found = list[One]()
    pages = Counter[int]()
    for path, status in _found(preparation.kernel, parameters.path):
        if len(found) == FILES_MAX:
            raise TargetError(f"{parameters.path} stands for more than {FILES_MAX} files", errno=errno.E2BIG)
        with contextlib.closing(open_target(preparation.kernel, path, kinds=MEMORY, write=write)) as target:
            if _identity(os.fstat(target.fd)) != _identity(status):  # replaced just now
                continue
            check(target)
            pages[target.page_size] += 1
            length, page_size = target.size(), target.page_size
        found.append(One(path, _identity(status), length, -(-length // page_size) * page_size))
    if len(pages) > 1:
        sizes = " and ".join(map(format_size, sorted(pages)))
        raise InvalidValue(
            f"{parameters.path} stands for files with pages of {sizes}: one task takes files of one page size"
        )
    if not found and glob.has_magic(parameters.path):
        raise TargetError(f"no file matches {parameters.path}", errno=errno.ENOENT)
    return ManyFiles(preparation.kernel, found, next(iter(pages), 1), write=write)


def _found(kernel: Kernel, path: str) -> Iterator[tuple[str, os.stat_result]]:
    if not os.path.isdir(path):
        for name in sorted(glob.iglob(path)):
            with contextlib.suppress(FileNotFoundError):
                status = os.stat(name, follow_symlinks=False)
                if stat.S_ISREG(status.st_mode):
                    yield name, status
        return
    try:
        fd = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise TargetError.from_os(error, f"open {path}") from error
    try:
        walk = Walk(kernel, Tree(fd, cross_mounts=False), once=True)
        for directory, name, status in walk:
            yield os.path.join(path, directory, name), status
        for number, left in walk.left[:1]:
            raise TargetError(f"{os.path.join(path, left)} cannot be read: {os.strerror(number)}", errno=number)
    finally:
        os.close(fd)


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino
