"""``evict``: write back and drop what the page cache holds of every regular file below a directory."""

from __future__ import annotations

import dataclasses
import errno
import itertools
import operator
import os
import stat
import threading
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from ktaskfs.errors import Finding, InvalidValue, NotSupported, TargetError, errno_name
from ktaskfs.host import syscalls
from ktaskfs.host.topology import read_nodes
from ktaskfs.host.tree import Tree, Walk
from ktaskfs.operations.base.operation import Operation
from ktaskfs.operations.base.parameters import FLAG, PATH, TaskParameters, parameter
from ktaskfs.span import Node
from ktaskfs.units import INODES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ktaskfs.host.kernel import Kernel
    from ktaskfs.ktask import Outcome
    from ktaskfs.operations.base.plan import Plan, Preparation

MIN_CHUNK: Final = 8
MAX_CHUNK: Final = 64
"""Inodes. The next ones are looked for under the scheduler's lock, at about 2 µs each."""
MEMORY: Final = frozenset({syscalls.TMPFS_MAGIC, syscalls.HUGETLBFS_MAGIC, syscalls.RAMFS_MAGIC})

_GONE: Final = 0
"""Counts, in the place of an errno, files that were not found again."""

OVERLAYFS_MAGIC: Final = 0x794C7630
"""The pages of an overlay's file are the lower file's, which sync_file_range(2) does not reach. fdatasync(2) does, but
has the device flush its cache even for a clean file: 74 µs here, and 1 µs the other way."""


@dataclass(frozen=True, kw_only=True)
class EvictParameters(TaskParameters):
    """A directory, or one file."""

    path: str = parameter(PATH, "the directory (or one regular file)")
    cross_mounts: bool = parameter(FLAG, "go into other filesystems mounted below it", default=False)


class Evict(Operation[EvictParameters]):
    """A position is a place on the way through the tree; its ordinal is what the task's files show.

    The files are counted first, then found again one by one as they are handed out, so that memory does not grow with
    the tree. Files that come or go meanwhile shift the others, so a resumed task may skip some or do some twice.
    Pages that a process has mapped or locked stay (posix_fadvise(2), POSIX_FADV_DONTNEED).
    """

    name = "evict"
    description = (
        "Write back, and drop, the cached pages of every regular file under path. Links are not followed. "
        "The result says how many files, of how many bytes, and how many were skipped and why; "
        "after a resume, in the last run alone. The task fails if it evicts none and skips some."
    )
    units = INODES
    parameters = EvictParameters
    no_undo = "what was dropped from the cache comes back by itself when it is read"

    def prepare(self, preparation: Preparation[EvictParameters]) -> Plan:
        """Open and count; raises NotSupported for files of memory, TargetError (ELOOP for a link).

        TargetError too if there is no file, and directories that could not be read.
        """
        kernel, remaining = preparation.kernel, preparation.remaining
        tree = _open_tree(preparation)
        counted = Walk(kernel, tree)
        total = sum(1 for _ in counted)
        if not total and counted.errors:
            ((number, _),) = counted.errors.most_common(1)
            words = f"{preparation.parameters.path}: no directory can be read: {os.strerror(number)}"
            raise TargetError(words, errno=number)
        if remaining is None:
            ranges = _shares(kernel, total, preparation.parameters.nodes)
        else:
            ranges = [
                Node(each.start, min(each.end, total) - each.start, each.nid)
                for each in remaining
                if each.start < total
            ]
        walks = [preparation.keep(Walk(kernel, tree)) for _ in ranges]
        places = [_Place.at(walk, each.start) for walk, each in zip(walks, ranges, strict=True)]
        nodes = [Node(place, each.size, each.nid) for place, each in zip(places, ranges, strict=True)]
        evictor = _Evictor(kernel, tree, counted)
        control = preparation.control(evictor.evict, least=MIN_CHUNK, most=MAX_CHUNK)
        control = dataclasses.replace(control, iter_func=_Place.advanced)
        return preparation.plan(nodes, control, evictor.finish)


def _open_tree(preparation: Preparation[EvictParameters]) -> Tree:
    path = preparation.parameters.path
    try:
        fd = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise TargetError.from_os(error, f"open {path}") from error
    preparation.callback(os.close, fd)
    mode = os.fstat(fd).st_mode
    if stat.S_ISLNK(mode):
        raise TargetError(f"{path} is a link, and links are not followed", errno=errno.ELOOP)
    if not stat.S_ISDIR(mode) and not stat.S_ISREG(mode):
        raise TargetError(f"{path} is neither a directory nor a regular file", errno=errno.EINVAL)
    if syscalls.filesystem_magic(fd) in MEMORY:
        raise NotSupported(f"{path} is on a filesystem of memory: its pages have no other place to be")
    return Tree(fd, preparation.parameters.cross_mounts)


def _shares(kernel: Kernel, total: int, nodes: Sequence[int] | None) -> list[Node]:
    """The ordinals, shared evenly over ``nodes``; raises InvalidValue for a node that is not there."""
    if not nodes:
        return [Node(0, total, -1)]
    known = {node.nid for node in read_nodes(kernel)}
    for nid in nodes:
        if nid not in known:
            raise InvalidValue(f"node {nid} is not there")
    edges = [total * number // len(nodes) for number in range(len(nodes) + 1)]
    return [Node(start, end - start, nid) for nid, start, end in zip(nodes, edges, edges[1:], strict=False)]


class _Place:
    """A place on a way through the tree, ``ordinal`` files from its beginning.

    ``paths`` are the files between it and the next place, until they are done: nothing leads from a place to the next,
    so that the beginning, which the framework keeps, does not keep the whole tree in memory.
    """

    def __init__(self, walk: Walk, ordinal: int) -> None:
        self.walk = walk
        self._ordinal = ordinal
        self.paths: tuple[str, ...] = ()

    @classmethod
    def at(cls, walk: Walk, ordinal: int) -> _Place:
        """The place of a new walk that leaves ``ordinal`` files out."""
        for _ in itertools.islice(walk, ordinal):
            pass
        return cls(walk, ordinal)

    def __index__(self) -> int:
        return self._ordinal

    def advanced(self, count: int) -> _Place:
        """The place so many files further; it has fewer ``paths`` if files are gone since they were counted."""
        self.paths = tuple(itertools.islice(self.walk, count))
        return _Place(self.walk, self._ordinal + count)


class _Evictor:
    """The chunk function, and what became of the files."""

    def __init__(self, kernel: Kernel, tree: Tree, counted: Walk) -> None:
        self._kernel = kernel
        self._tree = tree
        self._counted = counted
        self._lock = threading.Lock()  # guards the three below
        self._files = 0
        self._bytes = 0
        self._skipped: Counter[int] = Counter()
        """By errno."""

    def evict(self, first: _Place, last: _Place) -> None:
        """Evict the files between two places. Raises TargetError (ENOSYS) if the kernel or a filter lacks a call."""
        paths, first.paths = first.paths, ()
        files, size = 0, 0
        skipped: Counter[int] = Counter({_GONE: operator.index(last) - operator.index(first) - len(paths)})
        for path in paths:
            try:
                size += self._evict(path)
                files += 1
            except OSError as error:
                if error.errno == errno.ENOSYS:  # no file answers that: all the others would be skipped as well
                    raise TargetError.from_os(error, f"evict {path}") from error
                skipped[error.errno or errno.EIO] += 1
        with self._lock:
            self._files += files
            self._bytes += size
            self._skipped += skipped

    def _evict(self, path: str) -> int:
        fd = self._tree.open_regular(self._kernel, path)
        try:
            if syscalls.filesystem_magic(fd) == OVERLAYFS_MAGIC:
                os.fdatasync(fd)
            else:
                syscalls.write_back(fd)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            return os.fstat(fd).st_size
        finally:
            os.close(fd)

    def finish(self, outcome: Outcome) -> str:
        """The result: counts, then the reasons for skipping files and directories.

        Raises Finding if files were skipped, none was evicted, and they are not simply gone.
        """
        skipped = self._skipped + self._counted.errors  # a walk that hands files out stops at the last one
        counts = {"files": self._files, "bytes": self._bytes, "skipped": skipped.total()}
        counts["mounts"] = self._counted.mounts
        names = {number: errno_name(number) if number else "gone" for number in skipped}
        counts |= {f"skipped_{names[number]}": skipped[number] for number in sorted(names, key=names.__getitem__)}
        result = "".join(f"{key} {value}\n" for key, value in counts.items())
        reasons = [number for number, _ in self._skipped.most_common() if number not in (_GONE, errno.ENOENT)]
        if reasons and not self._files:
            words = f"no file was evicted, {self._skipped.total()} were skipped: {os.strerror(reasons[0])}"
            raise Finding(words, position=0, result=result, errno=reasons[0])
        return result
