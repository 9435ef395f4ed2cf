"""``checksum`` of whole files: the digests of sha256sum and similar tools, or a check of a list."""

from __future__ import annotations

import errno
import os
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from ktaskfs.errors import Finding, InvalidValue
from ktaskfs.host.buffer import Buffer
from ktaskfs.host.target import time_of_change
from ktaskfs.memory.hand_code import cached_data, open_tree_hands
from ktaskfs.operations.base.operation import Operation
from ktaskfs.operations.base.parameters import FILE, choice, parameter
from ktaskfs.operations.trees._files import FileList, Piece, TreeParameters, Which, is_directory, list_files, work_on
from ktaskfs.operations.trees._output import Output, make_output
from ktaskfs.operations.trees._pieces import SMALL_READ, ThreadTurns
from ktaskfs.operations.trees._report import FIRST_OWN_MARK, TreeReport
from ktaskfs.operations.trees._sums import TOOLS, WHOLE_FILE, Sums, list_text, read_manifest
from ktaskfs.units import BYTES, escaped

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ktaskfs.host.hands import Hands
    from ktaskfs.ktask import Outcome
    from ktaskfs.operations.base.plan import Plan, Preparation

MIN_CHUNK: Final = 4 << 20
MAX_CHUNK: Final = 16 << 20
"""Bytes in which files begin, and at least one whole file."""
PIECE: Final = 1 << 20
"""Bytes of one read."""
LARGE: Final = 8 << 20
"""Bytes of a file for a hand: the request and the mapping take as long as a copy of 4 MiB into a buffer."""
DIFFERS: Final = FIRST_OWN_MARK


class ChecksumParameters(TreeParameters):
    """Files, the algorithm, and a list to compare with."""

    algorithm: str = parameter(choice(*TOOLS), "the digest of this tool", default="sha256sum")
    manifest: str | None = parameter(
        FILE, "a list that the tool printed: check its files, and fail if one differs or is missing", default=None
    )
    out: str | None = parameter(FILE, "a new file for a list that is too long for result", default=None)

    def check(self) -> None:
        if self.manifest is not None and self.out is not None:
            raise InvalidValue("out excludes manifest")


class Checksum(Operation[ChecksumParameters]):
    """Such a digest cannot be combined from pieces: one thread does a file, several files at the same time."""

    name = "checksum"
    target = "a directory, or a file with the digest of a tool"
    description = (
        "Compute the digest of every regular file under path with algorithm, in the format of sha256sum and similar "
        "tools; links=1 also follows links. The tool prints the same list in that directory, and its -c accepts "
        "the result. With manifest, the task checks such a list instead, fails if a file differs or is missing, and "
        "names each in result. The task also fails if a file could not be read, or changed during the work."
    )
    units = BYTES
    parameters = ChecksumParameters
    no_undo = "a digest changes nothing"
    no_resume = "the digests of the finished files are lost"

    def means(self, parameters: Any) -> bool:
        return (
            parameters.algorithm in TOOLS
            or parameters.manifest is not None
            or parameters.out is not None
            or is_directory(parameters.path)
        )

    def prepare(self, preparation: Preparation[ChecksumParameters]) -> Plan:
        """Open, list, read the manifest, make the output.

        Raises as ``list_files``, ``read_manifest`` and ``make_output``.
        """
        parameters = preparation.parameters
        expected = None
        if parameters.manifest is not None:
            expected = read_manifest(preparation.kernel, parameters.manifest, parameters.algorithm)
        files = list_files(preparation, Which(cost=WHOLE_FILE, once=False, wanted=expected))
        nodes = preparation.nodes(work_on(files), 1)
        output = None if parameters.out is None else make_output(preparation, parameters.out, nodes)
        touch = _HandCode(files, parameters.algorithm).digest
        large, tree = files.bytes_of(LARGE), {files.tree.fd}
        hands = preparation.hands(nodes, lambda kernel, _: open_tree_hands(kernel, large, touch, tree))
        digester = _Digester(files, parameters, expected, output, hands)
        control = preparation.control(digester.digest, least=MIN_CHUNK, most=MAX_CHUNK)
        return preparation.plan(nodes, control, digester.finish, tree=files.fingerprint)


class _Digester:
    """The chunk function, and the digests of the files that are done."""

    def __init__(
        self,
        files: FileList,
        parameters: ChecksumParameters,
        expected: dict[str, bytes] | None,
        output: Output | None,
        hands: Hands | None,
    ) -> None:
        self._files = files
        self._hands = hands
        self._path = parameters.path
        self._sums = Sums(files, parameters.algorithm)
        self._expected = expected
        self._output = output
        self._report = TreeReport(files)
        self._turns = ThreadTurns(SMALL_READ)
        self._buffer = Buffer(PIECE)

    def digest(self, start: int, end: int) -> None:
        """Enter the files that begin between two positions."""
        self._turns.do(self._files.whole_files(start, end), self._digest_file)

    def _digest_file(self, file: Piece) -> None:
        try:
            digest = self._by_hand(file)
            if digest is None:
                digest = _digest(self._files, file.file, self._sums.new(), self._read)
        except OSError as error:
            self._report.skip(file.file, error)
            return
        self._sums.enter(file.file, digest)
        differs = self._expected is not None and self._expected[self._files.name(file.file)] != digest
        self._report.enter(file, marks=DIFFERS if differs else 0, bytes=file.size)

    def _by_hand(self, file: Piece) -> bytes | None:
        """The digest by a hand; None if there is no hand for it, or the hand could not do it."""
        return self._hands.do(file.file, 0) if self._hands is not None and file.size >= LARGE else None

    def _read(self, fd: int, end: int) -> Iterator[memoryview]:
        """The first ``end`` bytes, or all of a file that is shorter now, in pieces; each until the next one is asked
        for. Raises OSError."""
        position = 0
        while position < end:
            view = self._buffer.view[: end - position]
            count = os.preadv(fd, [view], position)
            if not count:
                break
            yield view[:count]
            position += count

    def finish(self, outcome: Outcome) -> str:
        """The result; nothing if the task did not finish.

        Raises Finding: EBADMSG if files differ from the manifest or are missing, or the errno of unreadable files.
        """
        if outcome.remaining():
            return ""
        if self._expected is None:
            return self._list()
        return self._compare(self._expected)

    def _list(self) -> str:
        """The lines with remarks as comments; or the counts, with ``out``."""
        report = self._report
        lines = partial(self._sums.lines, report, self._path)
        if self._output is not None:
            text = report.text({"bytes": report.sums["bytes"]})
            self._output.write(lines, text)
            return report.require_all(text, gone=True)
        return report.require_all(list_text(lines(), report.why()), gone=True)

    def _compare(self, expected: dict[str, bytes]) -> str:
        report = self._report
        missing = set(expected)
        missing.difference_update(map(self._files.name, range(len(self._files))))

        def bad() -> Iterator[tuple[str, str]]:
            for index, marks in report.done():
                if marks & DIFFERS:
                    yield "differs", self._files.name(index)
            yield from (("missing", name) for name in sorted(missing))

        differ = report.marked(DIFFERS)
        counts = {"bytes": report.sums["bytes"], "differ": differ, "missing": len(missing)}
        text = report.text(counts, header="what path", rows=(f"{what} {escaped(name)}" for what, name in bad()))
        if first := next(bad(), None):
            words = f"{differ} differ from the manifest, {len(missing)} are missing: {escaped(first[1])}"
            raise Finding(words, position=0, result=text, errno=errno.EBADMSG)
        return report.require_all(text, gone=False)


class _HandCode:
    """The work of a hand: whole files that the page cache has."""

    def __init__(self, files: FileList, algorithm: str) -> None:
        self._files = files
        self._new = TOOLS[algorithm]

    def digest(self, index: int, _: int) -> bytes:
        """The digest of the file of that number; raises OSError."""
        return _digest(self._files, index, self._new(), cached_data)


def _digest(files: FileList, index: int, digest: Any, read: Callable[[int, int], Iterator[memoryview]]) -> bytes:
    """The digest of a file, which ``read`` returns from its descriptor up to a position. Raises OSError: EBUSY for a
    changed file."""
    fd = files.open_data(index)
    try:
        before = os.fstat(fd)
        end = before.st_size or files.size(index)  # a device has no size there
        position = 0
        for view in read(fd, end):
            digest.update(view)
            position += len(view)
        after = os.fstat(fd)
    finally:
        os.close(fd)
    if (position, before.st_size, time_of_change(before)) != (end, after.st_size, time_of_change(after)):
        raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))
    found: bytes = digest.digest()
    return found
