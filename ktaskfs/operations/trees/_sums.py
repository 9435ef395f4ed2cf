"""Lists of digests in the format of ``sha256sum`` and similar tools."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import stat
from typing import TYPE_CHECKING, Any, Final

from ktaskfs.errors import InvalidValue, TargetError
from ktaskfs.host.target import FilesystemType, open_target
from ktaskfs.result import RESULT_MAX, fitting
from ktaskfs.units import shown

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from ktaskfs.host.kernel import Kernel
    from ktaskfs.operations.trees._files import FileList
    from ktaskfs.operations.trees._report import TreeReport

TOOLS: Final[Mapping[str, Callable[[], Any]]] = {
    "sha256sum": lambda: hashlib.sha256(usedforsecurity=False),
    "sha512sum": lambda: hashlib.sha512(usedforsecurity=False),
    "b2sum": lambda: hashlib.blake2b(usedforsecurity=False),
    "sha1sum": lambda: hashlib.sha1(usedforsecurity=False),
    "md5sum": lambda: hashlib.md5(usedforsecurity=False),
}
"""The maker of a digest, by tool."""
MANIFEST_MAX: Final = 64 << 20
"""Maximum bytes of a list."""
WHOLE_FILE: Final = 64 << 10
"""Bytes that a file takes beside its size in a list whose files are done whole, each by one thread."""
REST: Final = 64
"""Bytes of the last comment of a list, at most."""
_LINE: Final = re.compile(rb"(\\?)([0-9a-fA-F]{32,128}) [ *](.+)", re.DOTALL)
_ESCAPES: Final = {b"\\": b"\\\\", b"\n": b"\\n", b"\r": b"\\r"}
_ESCAPED: Final = {escape: byte for byte, escape in _ESCAPES.items()}


def line_of(digest: bytes, name: str) -> bytes:
    """The line of one file, as GNU coreutils write it: a name with a line feed is escaped, and the line says so."""
    encoded = os.fsencode(name)
    escaped = re.sub(rb"[\\\n\r]", lambda match: _ESCAPES[match[0]], encoded)
    mark = b"\\" if escaped != encoded else b""
    return b"%b%b  %b\n" % (mark, digest.hex().encode(), escaped)


class Sums:
    """The digests of the files of a list. Threads may enter what they have done at any time."""

    def __init__(self, files: FileList, algorithm: str) -> None:
        self.new = TOOLS[algorithm]
        self._files = files
        self._size = self.new().digest_size
        self._digests = bytearray(len(files) * self._size)

    def enter(self, index: int, digest: bytes) -> None:
        """The digest of the file of that number."""
        self._digests[index * self._size : (index + 1) * self._size] = digest

    def lines(self, report: TreeReport, alone: str = "") -> Iterator[bytes]:
        """The line of each regular file that is done; ``alone`` is the name if the tree is one file."""
        for index, _ in report.done():
            if stat.S_ISREG(self._files.kind(index)) or self._files.tree.is_file:
                digest = bytes(self._digests[index * self._size : (index + 1) * self._size])
                yield line_of(digest, alone if self._files.tree.is_file else self._files.path(index))


def list_text(rows: Iterable[bytes], remarks: str) -> str:
    """Rows as a result, as many as there is room for, then remarks as comments, which the tools pass over."""
    comments = "".join(f"# {line}\n" for line in remarks.splitlines())
    kept, left_out = fitting(map(_as_text, rows), RESULT_MAX - len(comments.encode()) - REST)
    rest = f"# {left_out} more; use out=FILE for all\n" if left_out else ""
    return kept + comments + rest


def _as_text(row: bytes) -> str | None:
    """The row without its line feed, or None if it is not UTF-8, because a result is text."""
    try:
        return row.removesuffix(b"\n").decode()
    except UnicodeDecodeError:
        return None


def read_manifest(kernel: Kernel, path: str, algorithm: str) -> dict[str, bytes]:
    """The digest of each name in a list, which is made relative and plain (``./a//b`` is ``a/b``).

    Raises TargetError, EFBIG for a list of more than MANIFEST_MAX bytes, and InvalidValue for a line that is none, for
    a list of nothing (a file that was never written would prove all), and for a name with two digests.
    """
    size = TOOLS[algorithm]().digest_size
    found: dict[str, bytes] = {}
    for number, line in enumerate(_read(kernel, path).split(b"\n"), 1):
        text = line.rstrip(b"\r")
        if not text or text.startswith(b"#"):
            continue
        match = _LINE.fullmatch(text)
        if match is None or len(match[2]) != 2 * size:
            # Without its text: messages go to the journal, and the file may be any.
            raise InvalidValue(f"{path}, line {number} is not a digest of {algorithm} and a name")
        name = match[3]
        if match[1]:
            name = re.sub(rb"\\[\\nr]", lambda escape: _ESCAPED[escape[0]], name)
        plain, digest = os.path.normpath(os.fsdecode(name)), bytes.fromhex(match[2].decode())
        if found.setdefault(plain, digest) != digest:
            raise InvalidValue(f"{path}, line {number}: {shown(plain)} has another digest in an earlier line")
    if not found:
        raise InvalidValue(f"{path} lists no file")
    return found


def _read(kernel: Kernel, path: str) -> bytes:
    target = open_target(kernel, path, kinds=frozenset(FilesystemType), write=False)
    try:
        text = bytearray()
        while piece := os.pread(target.fd, 1 << 20, len(text)):
            text += piece
            if len(text) > MANIFEST_MAX:
                raise TargetError(f"{path} has more than {MANIFEST_MAX} bytes", errno=errno.EFBIG)
    except OSError as error:
        raise TargetError.from_os(error, f"read {path}") from error
    finally:
        target.close()
    return bytes(text)
