"""A range of one file: its parameters, what they mean on a file of some size."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeVar

from ktaskfs.errors import InvalidValue
from ktaskfs.memory.source import require_source_range
from ktaskfs.operations.base.operation import Operation
from ktaskfs.operations.base.parameters import LENGTH, PATH, SIZE, TaskParameters, parameter
from ktaskfs.operations.base.resume import Baseline, FileState
from ktaskfs.span import Span
from ktaskfs.units import BYTES, PAGES, SIZE_MAX, format_size

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ktaskfs.host.target import Target
    from ktaskfs.memory.source import Source
    from ktaskfs.operations.base.plan import Preparation
    from ktaskfs.span import Node


@dataclass(frozen=True, kw_only=True)
class RangeParameters(TaskParameters):
    """What every operation on a range of one file takes."""

    path: str = parameter(PATH, "the file")
    offset: int = parameter(SIZE, "first byte of the range", default=0)
    length: int | None = parameter(LENGTH, "bytes in the range (default: to the end of the file)", default=None)

    def check(self) -> None:
        if self.offset + (self.length or 0) > SIZE_MAX:
            raise InvalidValue("offset plus length is past the largest file offset, 2^63 - 1")


P = TypeVar("P", bound=RangeParameters)


class RangeOperation(Operation[P]):
    """An operation whose positions are bytes of ``path``."""

    units = BYTES

    def baseline(self, parameters: P, nodes: Sequence[Node]) -> Baseline:
        found = super().baseline(parameters, nodes)
        size = FileState.of(parameters.path).size
        end = self.end_of_range(parameters, size, nodes)
        return replace(found, end=end, size=min(size, end))

    def end_of_range(self, parameters: P, size: int, nodes: Sequence[Node]) -> int:
        """The byte at which the range ends, for a file that has ``size`` bytes now."""
        return max((node.end for node in nodes), default=0)

    def settled(self, parameters: P, baseline: Baseline) -> P:
        """A range that went to the end of the file still ends where the file did then."""
        if parameters.length is None and baseline.size > parameters.offset:
            return replace(parameters, length=baseline.size - parameters.offset)
        return parameters


class PageRangeOperation(RangeOperation[P]):
    """An operation whose positions are pages of ``path``; a page that lies partly in the range counts."""

    units = PAGES

    def nodes(self, preparation: Preparation[P], target: Target) -> tuple[Node, ...]:
        """The pages of the range as work. Raises InvalidValue past the end of the file, and as ``make_nodes``."""
        page = target.page_size
        extent = resolve_extent(preparation.parameters, target.size(), may_grow=False).widened(page)
        return preparation.nodes(Span(extent.start // page, extent.end // page), 1)

    def end_of_range(self, parameters: P, size: int, nodes: Sequence[Node]) -> int:
        return size if parameters.length is None else parameters.offset + parameters.length


def resolve_extent(parameters: RangeParameters, size: int, *, may_grow: bool) -> Span:
    """The range that a spec means on a file of ``size`` bytes.

    Raises InvalidValue for an empty range, and, unless the operation ``may_grow`` the file, one past its end.
    """
    if parameters.length is None and parameters.offset >= size:
        what = "length is missing" if may_grow else "there is nothing to do"
        raise InvalidValue(f"{what}: {parameters.path} has {size} bytes and the range begins at {parameters.offset}")
    extent = Span(parameters.offset, size if parameters.length is None else parameters.offset + parameters.length)
    if extent.end > size and not may_grow:
        raise InvalidValue(f"the range ends at {extent.end}, past the end of {parameters.path}: it has {size} bytes")
    return extent


def require_whole_pages(extent: Span, page_size: int, path: str) -> None:
    """Raises InvalidValue unless the extent begins and ends at multiples of ``page_size``."""
    for name, value in (("offset", extent.start), ("length", extent.size)):
        if value % page_size:
            raise InvalidValue(f"{name} {value} is not a multiple of {format_size(page_size)}, the page size of {path}")


def source_length(source: Source, offset: int, parameters: RangeParameters) -> int:
    """Bytes that a spec means: ``length``, or up to the end of the source. Raises InvalidValue if there are none."""
    if parameters.length is not None:
        require_source_range(source, Span(offset, offset + parameters.length))
        return parameters.length
    size = source.file.size()
    if offset >= size:
        raise InvalidValue(
            f"there is nothing to do: {source.file.path} has {size} bytes and the range begins at {offset}"
        )
    return size - offset
