"""``checksum``: the digest of a range, independent of threads and chunks."""

from __future__ import annotations

import contextlib
import errno
import threading
from typing import TYPE_CHECKING, Final

from ktaskfs.errors import Finding, InvalidValue
from ktaskfs.host.buffer import Buffer
from ktaskfs.memory.digest import ALGORITHMS, LEAF, Digest, digest_maker, labelled, require_digest
from ktaskfs.memory.hand_code import TouchedFile, memory_at, open_hands
from ktaskfs.memory.source import Source
from ktaskfs.operations.base.parameters import Kind, choice, parameter
from ktaskfs.operations.ranges._many import open_many
from ktaskfs.operations.ranges._range import (
    FileParameters,
    RangeOperation,
    nodes_beside_pages,
    open_range_source,
    resolve_extent,
)
from ktaskfs.result import with_table
from ktaskfs.span import Span
from ktaskfs.units import shown

if TYPE_CHECKING:
    from collections.abc import Callable

    from ktaskfs.host.hands import Hands
    from ktaskfs.ktask import Outcome
    from ktaskfs.operations.base.plan import Plan, Preparation

MIN_CHUNK: Final = 16 << 20
MAX_CHUNK: Final = 64 << 20
"""At the slowest algorithm, 1.2 GiB/s a thread, 50 ms."""


def _parse(text: str) -> str:
    value = text.lower()
    if not value or value.strip("0123456789abcdef"):
        raise InvalidValue(f"{shown(text)} is not a digest in hexadecimal digits")
    return value


DIGEST: Final[Kind[str]] = Kind("hex", _parse, str, absent="none")


class ChecksumParameters(FileParameters):
    """A range, its algorithm, and the expected digest."""

    algorithm: str = parameter(
        choice(*ALGORITHMS), "crc32 as in zlib; the others are tree digests, unlike sha256sum or b3sum", default="crc32"
    )
    expect: str | None = parameter(DIGEST, "fail with EBADMSG if the digest differs from this", default=None)


class Checksum(RangeOperation[ChecksumParameters]):
    """Each thread reads into its own buffer, leaf by leaf; pread(2) of a hole allocates nothing."""

    name = "checksum"
    target = "a range of one file"
    description = (
        "Compute the digest of a range of any file. Threads and chunks do not change it: crc32 is zlib's, the "
        "others are trees over leaves of 1 MiB. With expect, the task fails if the digest differs. If a process shares "
        "several files, the result has a line for each."
    )
    parameters = ChecksumParameters
    takes_many_mapped = True
    no_undo = "a digest changes nothing"
    no_resume = "the digest of the finished part is lost"

    def prepare(self, preparation: Preparation[ChecksumParameters]) -> Plan:
        """Open for reading.

        Raises InvalidValue past the end of the file or for an ``expect`` of a wrong length, NotSupported where the
        algorithm's package is missing, TargetError.
        """
        parameters = preparation.parameters
        if parameters.expect is not None:
            require_digest(parameters.expect, parameters.algorithm)
        maker = digest_maker(parameters.algorithm)
        if preparation.files is not None:
            return _prepare_many(preparation, maker)
        source = preparation.keep(open_range_source(preparation))
        extent = resolve_extent(parameters, source.file.size(), may_grow=False)
        nodes = nodes_beside_pages(preparation, source.file, extent, LEAF)
        file = TouchedFile(source.file, write=False)
        touch = _HandCode(file, extent.start, maker).digest
        hands = preparation.hands(nodes, lambda kernel, size: open_hands(kernel, size, touch, [file]))
        digester = _Digester(source, extent, parameters, maker, hands)
        control = preparation.control(digester.digest, least=MIN_CHUNK, most=MAX_CHUNK, align=LEAF)
        return preparation.plan(nodes, control, digester.finish)


def _prepare_many(preparation: Preparation[ChecksumParameters], maker: Callable[[], Digest]) -> Plan:
    """A plan for several whole files of a process, with a digest of each. Raises as ``prepare``; refuses ``expect``."""
    parameters = preparation.parameters
    if parameters.expect is not None:
        raise InvalidValue("expect is the digest of one file, but the process shares several")
    files = open_many(preparation, lambda target: None, write=False, unit=LEAF)
    lock, digests = threading.Lock(), [maker() for _ in files.files]

    def digest(start: int, end: int) -> None:
        for index, target, piece in files.whole_pieces(start, end):
            source = Source(preparation.kernel, target.path, handle=target.fd)
            with contextlib.closing(source):
                whole = Span(0, files.files[index].length)
                found = _Digester(source, whole, parameters, maker, None).read(piece.start, piece.end)
            with lock:
                digests[index].merge(found)

    def finish(outcome: Outcome) -> str:
        if outcome.remaining():
            return ""
        there = [index for index in range(len(digests)) if not files.is_gone(index)]
        values = ((labelled(parameters.algorithm, digests[index].value()), files.files[index].path) for index in there)
        return with_table(files.counts, "", (f"{value.rstrip()} {path}" for value, path in values))

    nodes = preparation.nodes(files.extent, LEAF)
    control = preparation.control(digest, least=MIN_CHUNK, most=MAX_CHUNK, align=LEAF)
    return preparation.plan(nodes, control, finish)


class _Digester:
    """The chunk function, and the digest of the chunks that are finished."""

    def __init__(
        self,
        source: Source,
        extent: Span,
        parameters: ChecksumParameters,
        maker: Callable[[], Digest],
        hands: Hands | None,
    ) -> None:
        self._source = source
        self._hands = hands
        self._extent = extent
        self._parameters = parameters
        self._maker = maker
        self._buffer = Buffer(LEAF)
        self._lock = threading.Lock()
        self._whole = maker()  # guarded by _lock

    def digest(self, start: int, end: int) -> None:
        """Enter the bytes from ``start``, which begins a leaf, to ``end``; raises TargetError."""
        found = None if self._hands is None else self._hands.do(start, end)
        if found is None:
            found = self.read(start, end)
        with self._lock:
            self._whole.merge(found)

    def read(self, start: int, end: int) -> bytes:
        """Read these bytes and return their digest; raises TargetError."""
        mine, base, position = self._maker(), self._extent.start, start
        for low, high in self._source.data(start, end):
            first = low - (low - base) % LEAF  # data anywhere in a leaf makes the whole leaf data
            if position < first:
                mine.add_zeros(position - base, first - base)
                position = first
            while position < high:
                position = self._digest_leaf(mine, position, end)
        if position < end:
            mine.add_zeros(position - base, end - base)
        return mine.to_bytes()

    def _digest_leaf(self, digest: Digest, position: int, end: int) -> int:
        view = self._buffer.view[: min(LEAF, end - position)]
        self._source.read(view, position)
        digest.add(position - self._extent.start, view)
        return position + len(view)

    def finish(self, outcome: Outcome) -> str:
        """The digest, or nothing if the task did not finish.

        Raises Finding (EBADMSG, as in filesystems with checksums) if it differs from the expected one.
        """
        if outcome.remaining():
            return ""
        value, expected = self._whole.value(), self._parameters.expect
        result = labelled(self._parameters.algorithm, value)
        if expected not in (None, value):
            where = f"bytes {self._extent.start} to {self._extent.end} of {self._source.file.path}"
            message = f"{self._parameters.algorithm} of {where} is {value}, not {expected}"
            raise Finding(message, position=self._extent.start, result=result, errno=errno.EBADMSG)
        return result


class _HandCode:
    """The chunk function of a hand, for chunks without a hole. Positions of the digest count from ``base``."""

    def __init__(self, file: TouchedFile, base: int, maker: Callable[[], Digest]) -> None:
        self._file = file
        self._base = base
        self._maker = maker

    def digest(self, start: int, end: int) -> bytes:
        """The digest of a chunk; raises OSError."""
        mine = self._maker()
        with self._file.mapped(start, end) as address:
            for leaf in Span(0, end - start).windows(LEAF):
                mine.add(start - self._base + leaf.start, memory_at(address + leaf.start, leaf.size))
        return mine.to_bytes()
