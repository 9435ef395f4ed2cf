"""The ways in which a host of a fleet fails, and comes back."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Final, NamedTuple

from tests.support.daemon import ROOT

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.fleet.hosts import Host

MOUNT_AGAIN: Final = (
    f"cd {ROOT}; setsid {sys.executable} -m ktaskfs.cli.main mount --foreground -o statedir=/run/state /run/ktaskfs "
    "</dev/null >>/run/again.log 2>&1 & until [ -e /run/ktaskfs/version ]; do sleep 0.05; done"
)


class Fault(NamedTuple):
    """``begin`` and ``end`` are for a host.

    ``run``, ``ls`` and ``doctor`` are what these commands say of a host that failed before; ``doctor`` is empty if the
    host answers and finds the fault itself. ``meanwhile`` is what ``run`` says if it fails while its task is at work;
    empty if ``run`` waits until it is back.
    """

    name: str
    begin: Callable[[Host], None]
    end: Callable[[Host], None]
    run: str = "unreachable"
    ls: str = "unreachable"
    doctor: str = "unreachable"
    meanwhile: str = "lost"


def _kill_sshd(host: Host) -> None:
    """All of them: the listening one, and those with connections."""
    host.sh("pkill -KILL sshd; while pgrep sshd >/dev/null; do sleep 0.02; done")


def _start_sshd(host: Host) -> None:
    host.sh(f"setsid /usr/sbin/sshd -D -e -f {host.directory}/sshd_config </dev/null >>/run/again.log 2>&1 &")
    host.wait_for_ssh()


def _kill_daemon(host: Host) -> None:
    host.sh(
        "pkill -KILL -o -f 'ktaskfs.cli.main [m]ount'\n"
        "while pgrep -f 'ktaskfs.cli.main [m]ount' >/dev/null; do sleep 0.02; done"
    )


def _start_daemon(host: Host) -> None:
    host.sh(MOUNT_AGAIN)


def _link_down(host: Host) -> None:
    host.inside("ip", "link", "set", "eth0", "down")


def _link_up(host: Host) -> None:
    host.inside("ip", "link", "set", "eth0", "up")
    host.wait_for_ssh()


def _die(host: Host) -> None:
    host.kill()


def _boot(host: Host) -> None:
    host.boot()
    host.wait()


def _freeze(host: Host) -> None:
    host.freeze()


def _thaw(host: Host) -> None:
    host.thaw()
    host.wait_for_ssh()


SSHD: Final = Fault("sshd is killed", _kill_sshd, _start_sshd)
DAEMON: Final = Fault("the daemon is killed", _kill_daemon, _start_daemon, "refused", "failed", "", "")
LINK: Final = Fault("the link is down", _link_down, _link_up)
FROZEN: Final = Fault("it is frozen", _freeze, _thaw)
DEAD: Final = Fault("it is dead", _die, _boot)
FAULTS: Final = (SSHD, DAEMON, LINK, FROZEN, DEAD)
