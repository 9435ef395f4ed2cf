"""The scripts of the Debian package without systemd, as in a container."""

from __future__ import annotations

from typing import Final

import pytest

from tests.support.daemon import ROOT
from tests.support.shell import Outcome, run

OWN: Final = """
mount -t tmpfs none /etc
mount -t tmpfs none /run
mkdir -p /run/ktaskfs /run/ktaskfs-state/x /etc/ktaskfs.d
"$@"
find /etc /run -name '*ktask*'
"""
"""Runs a command with files of ktaskfs in an own /etc and an own /run, and prints what is in them after it."""


def purge(before: str = "true") -> Outcome:
    script = ["sh", "-ec", OWN, "-", "sh", "-ec", f'{before}; exec sh "$1" purge', "-"]
    return run("unshare", "--mount", "--propagation=private", *script, str(ROOT / "packaging/debian/ktaskfs.postrm"))


@pytest.mark.usefixtures("root")
def test_a_purge_without_systemd() -> None:
    assert purge() == Outcome(0, "", "")


@pytest.mark.usefixtures("root")
def test_a_purge_where_something_is_mounted_at_the_place_of_the_service() -> None:
    """Such as a volume of the container."""
    outcome = purge("mount -t tmpfs none /run/ktaskfs")
    assert (outcome.status, outcome.out) == (0, "/run/ktaskfs\n")
    assert outcome.err.endswith("Device or resource busy\n")
