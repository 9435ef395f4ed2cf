"""The command of the DaemonSet in docs/how-to/ktaskfs-kubernetes.yaml, which starts again in the same directory."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import pytest
import yaml

from tests.support.daemon import ROOT, interpreter
from tests.support.leftovers import none_left
from tests.support.poll import DEADLINE, until
from tests.support.shell import run

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("root")

MANIFEST = ROOT / "docs/how-to/ktaskfs-kubernetes.yaml"


def start(area: Path) -> subprocess.Popen[bytes]:
    """The command, in a directory of its own; returns when its mount answers."""
    manifest = next(yaml.safe_load_all(MANIFEST.read_text()))
    command = manifest["spec"]["template"]["spec"]["containers"][0]["command"]
    words = [each.replace("/run/", f"{area}/") for each in command]
    assert "ktaskfs mount" in words[-1]
    words[-1] = words[-1].replace("ktaskfs mount", f"{interpreter(ROOT)} -m ktaskfs.cli.main mount")
    daemon = subprocess.Popen(words, cwd=ROOT, stdin=subprocess.DEVNULL)

    def answers() -> bool:
        assert daemon.poll() is None
        return run("cat", str(area / "ktaskfs/mount/version")).status == 0

    until(answers, "the mount answers")
    return daemon


def test_it_starts_on_the_mount_of_a_killed_daemon(area: Path) -> None:
    with none_left():
        first = start(area)
        first.kill()
        first.wait(DEADLINE)
        second = start(area)
        assert run("umount", str(area / "ktaskfs/mount")).status == 0
        assert second.wait(DEADLINE) == 0
