"""What the rest of a task rests on: that the files are still those in which an earlier run did its part.

In a file that is new, or was cut, that part is gone, and the rest alone would be taken for the whole.
"""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from ktaskfs.errors import TargetError
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

    files: device and inode of each parameter that is a path.
    size:  bytes of ``path`` that the range needs, as far as the file had them; 0 where units are not bytes.
    total: units to do.
    """

    files: Mapping[str, tuple[int, int]]
    size: int
    total: int

    @classmethod
    def found(cls, parameters: TaskParameters, units: str, nodes: Sequence[Node]) -> Basis:
        """What is there now, for work that is to be done on ``nodes``. Raises TargetError."""
        files = {name: _look(path) for name, path in _paths(parameters)}
        size = 0
        if isinstance(parameters, RangeParameters) and units == "bytes":
            size = min(files["path"].st_size, max((node.start + node.size for node in nodes), default=0))
        identities = {name: (status.st_dev, status.st_ino) for name, status in files.items()}
        return cls(identities, size, sum(node.size for node in nodes))

    def require(self, parameters: TaskParameters) -> None:
        """Raises TargetError: ENOENT and the like, ESTALE for another file, ENXIO for one that was cut."""
        for name, path in _paths(parameters):
            status = _look(path)
            if (status.st_dev, status.st_ino) != self.files.get(name):
                raise TargetError(
                    f"{path} is not the file any more that the task began with: start it anew", errno=errno.ESTALE
                )
            if name == "path" and status.st_size < self.size:
                raise TargetError(
                    f"{path} was truncated to {status.st_size} bytes, and some of what was done is gone: "
                    "start the task anew",
                    errno=errno.ENXIO,
                )

    @classmethod
    def from_fields(cls, fields: Any) -> Basis:
        """The inverse of ``dataclasses.asdict``, through JSON or not; raises ValueError for anything else."""
        try:
            files = {str(name): (_number(device), _number(inode)) for name, (device, inode) in fields["files"].items()}
            basis = cls(files, _number(fields["size"]), _number(fields["total"]))
        except (TypeError, KeyError, AttributeError) as error:
            raise ValueError("not what a task rests on") from error
        if len(fields) != 3 or len(files) > FILES_MAX or any(len(name) > NAME_MAX for name in files):
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


def _look(path: str) -> os.stat_result:
    try:
        return os.stat(path)
    except OSError as error:
        raise TargetError.from_os(error, f"look at {path}") from error
