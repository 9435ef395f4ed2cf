"""Many whole files of memory as one sequence of positions: the files of a directory on hugetlbfs, of a pattern, or of
a process.

Each takes its size, in whole pages. It is opened again for each chunk, because there may be more files than
descriptors.
"""

from __future__ import annotations

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
from ktaskfs.memory.target_errors import truncated
from ktaskfs.operations.base.line import Line
from ktaskfs.operations.base.processes import map_file, open_mapped
from ktaskfs.operations.ranges._range import RangeParameters
from ktaskfs.result import lines
from ktaskfs.span import Span
from ktaskfs.units import format_size

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from ktaskfs.host.kernel import Kernel
    from ktaskfs.operations.base.plan import Preparation
    from ktaskfs.operations.base.processes import MappedFiles

FILES_MAX: Final = 1 << 16
"""Files that one task takes; the list has some 400 bytes of each."""

GONE: Final = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ESRCH, errno.ESTALE})
"""The errors for a file that was removed or replaced, or whose mapping has ended with its process."""

P = TypeVar("P", bound=RangeParameters)


class One(NamedTuple):
    """A file of the list: its name, device and inode, its length in bytes, and its size in whole pages or units.

    ``mapped``: its index in ``MappedFiles.areas``. None: the task opens the file by ``path``.
    """

    path: str
    identity: tuple[int, int]
    length: int
    size: int
    mapped: int | None = None


class ManyFiles:
    """The files of one task, all with pages of ``page_size`` bytes."""

    def __init__(
        self, kernel: Kernel, files: Sequence[One], page_size: int, mapped: MappedFiles | None, *, write: bool
    ) -> None:
        self.files = files
        self.page_size = page_size
        self.line = Line(list(accumulate(each.size for each in files)))
        self._kernel = kernel
        self._mapped = mapped
        self._write = write
        self._lock = threading.Lock()
        self._gone = set[int]()  # guarded by _lock

    @property
    def extent(self) -> Span:
        """All positions, in bytes."""
        return self.line.whole

    def pieces(self, start: int, end: int) -> Iterator[tuple[int, Target, Span]]:
        """The files between two positions: number, open file, and the bytes in it.

        Raises TargetError. Skips removed and replaced files, and files that the process no longer maps. A file that
        became shorter ends earlier.
        """
        for index, part in self.line.pieces(start, end):
            with self.opened(index) as target:
                if target is not None:
                    piece = part.cut(Span(0, target.size()).widened(self.page_size))
                    if piece.size > 0:
                        yield index, target, piece

    @contextlib.contextmanager
    def opened(self, index: int) -> Iterator[Target | None]:
        """The file of that number, or None if its name now means another file. Raises TargetError."""
        with _opened(self._kernel, self.files[index], self._mapped, write=self._write) as target:
            if target is None:
                with self._lock:
                    self._gone.add(index)
            yield target

    def whole_pieces(self, start: int, end: int) -> Iterator[tuple[int, Target, Span]]:
        """As ``pieces``, without bytes past the end of a file. Raises TargetError (ENXIO) if a file became shorter."""
        for index, part in self.line.pieces(start, end):
            within = part.cut(Span(0, self.files[index].length))
            with self.opened(index) as target:
                if target is None or within.size <= 0:
                    continue
                if target.size() < within.end:
                    raise truncated(target)
                yield index, target, within

    def is_gone(self, index: int) -> bool:
        """Whether the file of that number was skipped."""
        return index in self._gone

    @property
    def text(self) -> str:
        """The counts as lines of the result."""
        return lines(self.counts)

    @property
    def counts(self) -> dict[str, int]:
        """For the result."""
        return {"files": len(self.files), "gone": len(self._gone), "page_size": self.page_size}


def open_many(
    preparation: Preparation[P],
    check: Callable[[Target], None],
    *,
    write: bool = True,
    unit: int = 1,
    every_name: bool = False,
) -> ManyFiles:
    """The files of memory for ``path``, or those that a process shares; ``check`` is called with each open file.

    Each begins at a multiple of ``unit`` and of its page size; one of these must be a multiple of the other.
    For a directory those below it, on the same mount, without links. A file with several names is taken once, or with
    ``every_name`` once for each. Raises InvalidValue for files with pages of different sizes and for a range in them;
    TargetError: ENOENT where nothing matches, E2BIG; and as ``open_target`` and ``check``.
    """
    parameters = preparation.parameters
    if parameters.offset or parameters.length is not None:
        raise InvalidValue(f"{parameters.path} stands for many files: leave out offset and length")
    found = list[One]()
    pages = Counter[int]()
    for one in _found(preparation, every_name=every_name):
        if len(found) == FILES_MAX:
            raise TargetError(f"{parameters.path} stands for more than {FILES_MAX} files", errno=errno.E2BIG)
        with _opened(preparation.kernel, one, preparation.files, write=write) as target:
            if target is None:
                continue
            try:
                check(target)
            except TargetError as error:
                if error.errno not in GONE:
                    raise
                continue
            pages[target.page_size] += 1
            length, step = target.size(), max(target.page_size, unit)
        found.append(one._replace(length=length, size=-(-length // step) * step))
    if len(pages) > 1:
        sizes = " and ".join(map(format_size, sorted(pages)))
        raise InvalidValue(
            f"{parameters.path} stands for files with pages of {sizes}: one task takes files of one page size"
        )
    if not found and not os.path.isdir(parameters.path):
        raise TargetError(f"no file matches {parameters.path}", errno=errno.ENOENT)
    page_size = next(iter(pages)) if pages else _page_size_of(parameters.path)
    return ManyFiles(preparation.kernel, found, page_size, preparation.files, write=write)


def _page_size_of(directory: str) -> int:
    """The page size of files in an empty directory of hugetlbfs. Raises TargetError."""
    try:
        return os.statvfs(directory).f_bsize
    except OSError as error:
        raise TargetError.from_os(error, f"look at {directory}") from error


@contextlib.contextmanager
def _opened(kernel: Kernel, one: One, mapped: MappedFiles | None, *, write: bool) -> Iterator[Target | None]:
    """A file of the list; None if its name or mapping is gone, or now means another file. Raises TargetError."""
    try:
        target = _open(kernel, one, mapped, write=write)
    except TargetError as error:
        if error.errno not in GONE:
            raise
        target = None
    if target is None:
        yield None
        return
    with contextlib.closing(target):
        yield target


def _open(kernel: Kernel, one: One, mapped: MappedFiles | None, *, write: bool) -> Target | None:
    """Open a file of the list; None if it is another one now. Raises TargetError: ENOENT or ESRCH if it is gone."""
    handle = _handle(one, mapped)
    try:
        if _identity(os.fstat(handle)) != one.identity:
            return None
        return open_target(kernel, one.path, kinds=MEMORY, write=write, handle=handle)
    finally:
        os.close(handle)


def _handle(one: One, mapped: MappedFiles | None) -> int:
    """An O_PATH descriptor of what a file of the list is now. Raises TargetError."""
    if mapped is not None and one.mapped is not None:
        return open_mapped(mapped.process, mapped.areas[one.mapped])
    try:
        return os.open(one.path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise TargetError.from_os(error, f"open {one.path}") from error


def _found(preparation: Preparation[P], *, every_name: bool) -> Iterator[One]:
    """The files, without their lengths and sizes. Raises TargetError."""
    mapped = preparation.files
    if mapped is None:
        for path, status in _named(preparation.kernel, preparation.parameters.path, every_name=every_name):
            yield One(path, _identity(status), 0, 0)
        return
    for number, area in enumerate(mapped.areas):
        yield One(map_file(mapped.process.pid, area), (area.device, area.inode), 0, 0, number)


def _named(kernel: Kernel, path: str, *, every_name: bool) -> Iterator[tuple[str, os.stat_result]]:
    if not os.path.isdir(path):
        seen = set[tuple[int, int]]()
        for name in sorted(glob.iglob(path)):
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                status = os.stat(name, follow_symlinks=False)
                if stat.S_ISREG(status.st_mode) and (every_name or _identity(status) not in seen):
                    seen.add(_identity(status))
                    yield name, status
        return
    try:
        fd = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise TargetError.from_os(error, f"open {path}") from error
    try:
        walk = Walk(kernel, Tree(fd, cross_mounts=False), once=not every_name)
        for directory, name, status in walk:
            yield os.path.join(path, directory, name), status
        for number, left in [each for each in walk.left if each[0] not in GONE][:1]:
            raise TargetError(f"{os.path.join(path, left)} cannot be read: {os.strerror(number)}", errno=number)
    finally:
        os.close(fd)


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino
