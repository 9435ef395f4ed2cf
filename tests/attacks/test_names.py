"""With hidepid no name and no file of the mount reveals another user's tasks."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest

from tests.support.shell import run
from tests.support.slow import start_slow, stop

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import MountMaker
    from tests.support.daemon import Mount
    from tests.support.users import User

READ = """
import os, sys
for directory, _, names in os.walk(".", followlinks=True):
    print(directory, *names, flush=True)
    for name in names:
        try:
            with open(os.open(f"{directory}/{name}", os.O_RDONLY | os.O_NONBLOCK), "rb", buffering=0) as file:
                while data := file.read(65536):
                    sys.stdout.buffer.write(data)
        except OSError:  # it is closed to this user, or has nothing more for now
            pass
"""

pytestmark = pytest.mark.usefixtures("patient")


def all_that_is_said(mount: Mount, user: User) -> str:
    """All names in the mount, and the texts of all files that ``user`` may read."""
    outcome = run(sys.executable, "-I", "-c", READ, cwd=mount.path, user=user)
    assert (outcome.status, outcome.err) == (0, "")
    return outcome.out


@pytest.mark.parametrize(("hidepid", "seen"), [(0, True), (1, True), (2, False)])
def test_names_and_paths_of_others(
    mount_maker: MountMaker, memory: Path, attacker: User, victim: User, hidepid: int, seen: bool
) -> None:
    mount = mount_maker(f"mode=0666,hidepid={hidepid}")
    start_slow(mount, memory, "hers-at-work", user=victim)
    start_slow(mount, memory, "hers-ended", user=victim)
    stop(mount, "hers-ended", user=victim)
    script = 'mkdir tasks/$1 && echo clear > tasks/$1/op && echo "$2/slow-$1" > tasks/$1/path'
    assert mount.shell(script, "hers-prepared", str(memory), user=victim).status == 0
    assert mount.write("tasks/control", f"clear path={memory}/none name=refused", user=victim) == (1, "ENOENT")
    hers, others = all_that_is_said(mount, victim), all_that_is_said(mount, attacker)
    for name in ("hers-at-work", "hers-ended", "hers-prepared"):
        assert f"{memory}/slow-{name}" in hers
        assert (name in others) is seen
    assert f"{memory}/none" in hers
    assert str(memory) not in others
    assert f"user {victim.uid}" not in others
    stop(mount, "hers-at-work", user=victim)
