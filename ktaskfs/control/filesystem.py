"""What the inodes of one mount share."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from ktaskfs.control.command_log import CommandLog
from ktaskfs.control.commands import Openings
from ktaskfs.vfs import Attributes, InodeNumbers, Patience

if TYPE_CHECKING:
    from ktaskfs.control.access import Access
    from ktaskfs.host.kernel import Kernel
    from ktaskfs.tasks.service import TaskService
    from ktaskfs.vfs import Watcher


@dataclass(frozen=True)
class Filesystem:
    """One mount, as its inodes know it.

    service: the tasks, the operations and the tunables.
    root:    the attributes of the root. Inodes that belong to no task have its owner and time.
    watcher: looks for progress while somebody polls for it.
    """

    service: TaskService
    kernel: Kernel
    access: Access
    root: Attributes
    watcher: Watcher
    numbers: InodeNumbers = field(default_factory=InodeNumbers)
    log: CommandLog = field(default_factory=CommandLog)
    openings: Openings = field(default_factory=Openings)
    patience: Patience = field(default_factory=Patience)

    def attributes(self, mode: int) -> Attributes:
        """Those of the root with another mode."""
        return replace(self.root, mode=mode)
