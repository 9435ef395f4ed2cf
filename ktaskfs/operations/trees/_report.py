"""The outcome for the files of a tree, for the result of a task."""

from __future__ import annotations

import errno
import os
import threading
from collections import Counter
from typing import TYPE_CHECKING, Final

from ktaskfs.errors import Finding, errno_name
from ktaskfs.host.tree import LEFT_MAX
from ktaskfs.result import fitting, lines, with_table
from ktaskfs.units import escaped

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from ktaskfs.operations.trees._files import FileList, Piece

DONE: Final = 1
"""The end of the file was reached."""
SKIPPED: Final = 2
SPECIAL: Final = 0
"""Instead of an errno: a FIFO, a device or the like."""
CHANGED: Final = errno.EBUSY
"""The errno for a file that changed during the work; its own words say something else."""
FIRST_OWN_MARK: Final = 4
"""First mark with a meaning of the operation's own."""
SKIPPED_ROOM: Final = 256 << 10
"""Bytes of a result, for the table of what was skipped."""


class TreeReport:
    """Marks of each file, one byte, and why files were skipped. Threads may enter what they have done at any time.

    ``mounts``: mounted filesystems that were not entered, beside those that the walk through ``files`` has counted.
    """

    def __init__(self, files: FileList, *, mounts: int = 0) -> None:
        self._files = files
        self._mounts = mounts
        self._lock = threading.Lock()
        self._marks = bytearray(len(files))  # guarded by _lock, as all below
        self._reasons: Counter[int] = Counter()
        self._skipped: list[tuple[int, str]] = []
        self._sums: Counter[str] = Counter()

    def enter(self, piece: Piece, *, marks: int = 0, **sums: int) -> None:
        """A piece is done: mark its file, and add to the sums of the result."""
        with self._lock:
            self._marks[piece.file] |= marks | (DONE if piece.is_last else 0)
            for name, count in sums.items():  # Counter.update takes twice as long, and there may be millions of files
                self._sums[name] += count

    def skip_special(self, index: int) -> None:
        """A FIFO, a device or the like was skipped, which is not a failure."""
        self._skip(index, SPECIAL)

    def pass_over(self, index: int) -> None:
        """A file lies in a mounted filesystem, which is no failure, and is counted in ``mounts``."""
        with self._lock:
            self._marks[index] |= SKIPPED

    def skip(self, index: int, error: OSError) -> None:
        """A file, or its rest, was skipped."""
        self._skip(index, error.errno or errno.EIO)

    def skip_top(self, error: OSError) -> None:
        """The directory itself could not be completed."""
        with self._lock:
            self._name_skipped(error.errno or errno.EIO, ".")

    def _skip(self, index: int, number: int) -> None:
        with self._lock:
            if self._marks[index] & SKIPPED:
                return
            self._marks[index] |= SKIPPED
            self._name_skipped(number, self._files.name(index))

    def _name_skipped(self, number: int, name: str) -> None:
        """Call it with ``_lock``."""
        self._reasons[number] += 1
        if len(self._skipped) < LEFT_MAX:
            self._skipped.append((number, name))

    def is_skipped(self, index: int) -> bool:
        """Whether a file was skipped."""
        return bool(self._marks[index] & SKIPPED)

    def marked(self, mark: int) -> int:
        """Files with a mark, without the skipped ones."""
        with self._lock:
            counted = Counter(self._marks)
        return sum(count for marks, count in counted.items() if marks & mark and not marks & SKIPPED)

    @property
    def sums(self) -> Mapping[str, int]:
        """The entered sums, by name."""
        return self._sums

    def done(self) -> Iterator[tuple[int, int]]:
        """Number and marks of each complete file."""
        return ((index, marks) for index, marks in enumerate(self._marks) if marks & DONE and not marks & SKIPPED)

    @property
    def reasons(self) -> Counter[int]:
        """How many files, and directories, were skipped, by errno."""
        return self._reasons + self._files.walk.errors

    def text(self, counts: Mapping[str, int], *, header: str = "", rows: Iterable[str] = ()) -> str:
        """The result: ``files`` and ``counts``, then what was skipped, by reason; then tables.

        The first has ``rows`` below ``header``, as many as there is room for; the second names what was skipped.
        """
        reasons = self.reasons
        told = {"files": self.marked(DONE), **counts}
        told |= {"skipped": reasons.total(), "mounts": self._files.walk.mounts + self._mounts}
        told |= dict(sorted((f"skipped_{_name(number)}", count) for number, count in reasons.items()))
        return with_table(told, header, rows, after=self.why()) if header else lines(told) + self.why()

    def why(self) -> str:
        """A table of the first skipped files; empty if there are none."""
        left = [f"{_name(number)} {escaped(path)}" for number, path in [*self._files.walk.left, *self._skipped]]
        return f"reason path\n{fitting(left, SKIPPED_ROOM)[0]}" if left else ""

    def require_some(self, text: str, done: str) -> str:
        """The result ``text``; raises Finding if no file was done and some were skipped for a reason other than
        removal.

        ``done`` is the verb for the message.
        """
        if not self.marked(DONE):
            self._require_none_but({SPECIAL, errno.ENOENT}, text, f"nothing was {done}, ")
        return text

    def require_all(self, text: str, *, gone: bool) -> str:
        """The result ``text``. Raises Finding if any were skipped; with ``gone``, missing files do not count."""
        self._require_none_but({SPECIAL, errno.ENOENT} if gone else {SPECIAL}, text, "")
        return text

    def _require_none_but(self, pardoned: set[int], text: str, words: str) -> None:
        serious = [number for number, _ in self.reasons.most_common() if number not in pardoned]
        if serious:
            why = "changed during the work" if serious[0] == CHANGED else os.strerror(serious[0])
            words += f"{self.reasons.total()} skipped: {why}"
            raise Finding(words, position=0, result=text, errno=serious[0])


def _name(number: int) -> str:
    return {SPECIAL: "special", errno.ENOENT: "gone"}.get(number) or errno_name(number)
