"""Shared by the inodes of one mount."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ktaskfs.control.callers import Callers
from ktaskfs.control.command_log import CommandLog
from ktaskfs.control.limits import Limits
from ktaskfs.vfs import Attributes, InodeNumbers, Notices, Patience, Portions, Splices

if TYPE_CHECKING:
    from ktaskfs.control.access import Access
    from ktaskfs.host.kernel import Kernel
    from ktaskfs.tasks.service import TaskService
    from ktaskfs.vfs import Watcher


@dataclass(frozen=True)
class Filesystem:
    """One mount, as seen by its inodes.

    service: the tasks, the operations and the tunables.
    root:    the attributes of the root. Inodes that belong to no task have its owner and time.
    watcher: checks progress while somebody polls for it.
    notices: the files to report with inotify(7).
    """

    service: TaskService
    kernel: Kernel
    access: Access
    root: Attributes
    watcher: Watcher
    notices: Notices = field(default_factory=Notices)
    numbers: InodeNumbers = field(default_factory=InodeNumbers)
    callers: Callers = field(default_factory=Callers)
    log: CommandLog = field(default_factory=CommandLog)
    patience: Patience = field(default_factory=Patience)
    portions: Portions = field(default_factory=Portions)
    splices: Splices = field(default_factory=Splices)
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        self.limits.observe(self.log.refused_opening)

    def attributes(self, mode: int) -> Attributes:
        """The root's attributes with another mode."""
        return self.root._replace(mode=mode)
