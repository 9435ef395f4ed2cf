"""``clear``: write zeros over what a file of memory has, in place. No page is freed and none is allocated."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ktaskfs.errors import TargetError
from ktaskfs.host.zeros import Zeros
from ktaskfs.operations.ranges._overwrite import Content, prepare_overwrite
from ktaskfs.operations.ranges._range import RangeOperation, RangeParameters

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ktaskfs.host.kernel import Kernel
    from ktaskfs.operations.base.operation import Plan
    from ktaskfs.span import Node


@dataclass(frozen=True, kw_only=True)
class ClearParameters(RangeParameters):
    """A range, by default to the end of the file."""


class Clear(RangeOperation[ClearParameters]):
    """The kernel reads zeros into a mapping where a HoleGuard makes it stop at holes."""

    name = "clear"
    description = (
        "Write zeros over what is there, in place: no page is freed, and a hole stays a hole. "
        "Several threads share even one gigantic page."
    )
    parameters = ClearParameters
    no_undo = "what was overwritten with zeros cannot be brought back"

    def prepare(self, kernel: Kernel, parameters: ClearParameters, remaining: Sequence[Node] | None) -> Plan:
        """Open and map; raises InvalidValue past the end of the file, NotSupported where holes hide."""
        try:
            zeros = Zeros.open(kernel)
        except OSError as error:
            raise TargetError.from_os(error, "open a source of zeros") from error
        source = Content(zeros.fd, zeros.length, zeros.close)
        return prepare_overwrite(kernel, parameters, remaining, source, report=lambda written: "")
