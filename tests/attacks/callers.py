"""Callers with less than they seem to have."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tests.support.poll import until

if TYPE_CHECKING:
    from tests.support.daemon import Mount

_READ_ONLY: Final = "mount -o remount,bind,ro /proc && mount -o remount,bind,ro /sys"
WEAK_ROOT: Final = (
    *("unshare", "--mount", "sh", "-c"),
    f'{_READ_ONLY} && exec setpriv --bounding-set=-all --inh-caps=-all "$@"',
    "sh",
)
"""Put before a command: uid 0 without a capability, and read-only views of the host's /proc and /sys."""
OWN_USER_NAMESPACE: Final = ("unshare", "--user", "--map-root-user")
"""Put before a command: uid 0 in a new user namespace, with the host's files and pids."""


def wait_for_worker(mount: Mount, task: str) -> int:
    """The pid of the worker of ``task``, once it is at work."""
    until(lambda: mount.read(f"tasks/{task}/state") == "running\n", "the task runs")
    status = dict(line.split(maxsplit=1) for line in mount.read(f"tasks/{task}/stat").splitlines())
    return int(status["pid"])
