"""What the rest of a task rests on: that the files are still those in which an earlier run did its part.

In a file that is new, or too short, that part is gone, and the rest alone would be taken for the whole.
"""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from ktaskfs.errors import TargetError
from ktaskfs.host import syscalls
from ktaskfs.operations.parameters import PATH, RangeParameters, TaskParameters, parameters_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from ktaskfs.ktask import Node


FILES_MAX: Final = 8
NAME_MAX: Final = 64
"""A worker is its caller's process: what it says is kept only if it is short. No operation has so many paths."""


@dataclass(frozen=True)
class Basis:
    """What a run found when it was ready to begin.

    files: device, inode and time of birth (ns, 0 where the filesystem keeps none) of each parameter that is a path.
    end:   byte of ``path`` at which the range ends; 0 for an operation without a range.
    size:  as many bytes of the range and what is before it as the file had.
    total: units to do.
    """

    files: Mapping[str, tuple[int, int, int]]
    end: int
    size: int
    total: int

    @classmethod
    def found(cls, parameters: TaskParameters, units: str, nodes: Sequence[Node]) -> Basis:
        """What is there now, for work that is to be done on ``nodes``. Raises TargetError."""
        files = {name: _look(path) for name, path in _paths(parameters)}
        end = size = 0
        if isinstance(parameters, RangeParameters):
            size = files["path"][0]
            if units == "bytes":
                end = max((node.start + node.size for node in nodes), default=0)
            else:
                end = size if parameters.length is None else parameters.offset + parameters.length
        identities = {name: identity for name, (_, identity) in files.items()}
        return cls(identities, end, min(size, end), sum(node.size for node in nodes))

    def settled(self, parameters: TaskParameters) -> TaskParameters:
        """The parameters of a rest: a range that went to the end of the file still ends where the file did then."""
        if isinstance(parameters, RangeParameters) and parameters.length is None and self.size > parameters.offset:
            return replace(parameters, length=self.size - parameters.offset)
        return parameters

    def require(self, parameters: TaskParameters) -> None:
        """Raises TargetError: ENOENT and the like, ESTALE for another file, ENXIO for one that is too short now."""
        for name, path in _paths(parameters):
            size, identity = _look(path)
            if identity != self.files.get(name):
                raise TargetError(
                    f"{path} is not the file any more that the task began with: start it anew", errno=errno.ESTALE
                )
            if name == "path" and size < self.size:
                raise TargetError(
                    f"{path} was truncated to {size} bytes, and some of what was done is gone: "
                    "start the task anew",
                    errno=errno.ENXIO,
                )

    @classmethod
    def from_fields(cls, fields: Any) -> Basis:
        """The inverse of ``dataclasses.asdict``, through JSON or not; raises ValueError for anything else."""
        try:
            files = {
                str(name): (_number(device), _number(inode), _number(born))
                for name, (device, inode, born) in fields["files"].items()
            }
            basis = cls(files, *(_number(fields[name]) for name in ("end", "size", "total")))
        except (TypeError, KeyError, AttributeError) as error:
            raise ValueError("not what a task rests on") from error
        if len(fields) != 4 or len(files) > FILES_MAX or any(len(name) > NAME_MAX for name in files):
            raise ValueError("more than what a task rests on")
        return basis


def _number(value: Any) -> int:
    if type(value) is not int:
        raise ValueError(f"{value!r} is no number")
    return value


def _paths(parameters: TaskParameters) -> Iterator[tuple[str, str]]:
    for each in parameters_of(type(parameters)):
        if each.kind is PATH:
            yield each.name, getattr(parameters, each.name)


def _look(path: str) -> tuple[int, tuple[int, int, int]]:
    """Size and identity. Inode numbers of files that are gone are given to new ones (ext4, at once)."""
    try:
        status = os.stat(path)
        return status.st_size, (status.st_dev, status.st_ino, syscalls.birth_time(path))
    except OSError as error:
        raise TargetError.from_os(error, f"look at {path}") from error
