"""``clear``: overwrite the existing pages of a file of memory with zeros, in place. No page is freed or allocated."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ktaskfs.errors import TargetError
from ktaskfs.host.target import MEMORY
from ktaskfs.host.zeros import Zeros
from ktaskfs.operations.ranges._overwrite import Content, OverwriteParameters, prepare_overwrite
from ktaskfs.operations.ranges._range import RangeOperation

if TYPE_CHECKING:
    from ktaskfs.operations.base.plan import Plan, Preparation


class Clear(RangeOperation[OverwriteParameters]):
    """The kernel reads zeros into a mapping; a HoleGuard makes it stop at holes."""

    name = "clear"
    description = (
        "Overwrite existing pages with zeros, in place: no page is freed, and holes stay holes. Several threads share "
        "even one gigantic page. path may be a directory on hugetlbfs or a quoted pattern, for all files of memory "
        "there."
    )
    parameters = OverwriteParameters
    kinds = MEMORY
    takes_many = takes_many_mapped = True
    no_undo = "overwritten data is lost"

    def prepare(self, preparation: Preparation[OverwriteParameters]) -> Plan:
        """Open and map; raises InvalidValue past the end of the file, NotSupported where holes hide."""
        try:
            zeros = preparation.keep(Zeros.open(preparation.kernel))
        except OSError as error:
            raise TargetError.from_os(error, "open /dev/zero") from error
        return prepare_overwrite(preparation, Content(zeros.fd, zeros.length), report=lambda written: "")
