"""The text of ``README``: how to use the mount, on one screen, from the declarations it describes."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ktaskfs.operations.base.operation import SpecWord

_TEXT = """\
Large work on huge pages, in chunks, on several threads. Everything here is read with cat and set with echo.

  echo 'fallocate path=/dev/hugepages/vm0 length=64G name=vm0' > tasks/control     starts a task
  cat tasks/vm0/progress                                                           done / total
  cat tasks/vm0/wait                                                               follows the task to its end
  cat tasks/vm0/error                                                              0, or why it failed
  echo cancel > tasks/vm0/control                                                  ends the task early
  rmdir tasks/vm0                                                                  removes an ended task

A write that fails changes nothing; info/last_cmd_status says why, info/error_log shows where.
A task runs with the writer's rights, in its own process. It continues after an unmount.

  tasks/NAME/     state status stat stat.json progress threads result error wait, and the parameters; control
                  takes cancel, kill, pause, resume, start (after mkdir); tasks is a link to users/UID/tasks
  debug/          tunables: threads for each task, the share of the CPUs, the nice value of helpers, limits
  info/           a table of all tasks, huge page pools, NUMA nodes, your last commands
  events          a line for each state change of a task, from open on
  metrics         counters for Prometheus; metrics.openmetrics has the same as OpenMetrics
  operations/     the operations; operations/NAME/parameters lists their parameters, such as plan=1:

"""


def manual(operations: Mapping[str, SpecWord]) -> str:
    """The whole text."""
    width = max((len(name) for name in operations), default=0)
    lines = [
        # The first part of the description; its own file has the whole.
        f"  {name.ljust(width)}  {re.split('[.:;] ', each.description)[0].rstrip('.')}"
        for name, each in operations.items()
    ]
    return _TEXT + "\n".join(lines) + "\n"
