"""The main job from a root directory and from namespaces of the caller's own."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.attacks.callers import OWN_USER_NAMESPACE
from tests.containers.conftest import HUGE
from tests.support.shell import Outcome, run

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.conftest import MountMaker
    from tests.support.daemon import Mount
    from tests.support.hugepages import TestPool
    from tests.support.users import User

SIZE = 20 * HUGE
JOB = f"""
echo "fallocate path=$1/a length={SIZE} name=a" > "$2/tasks/control" || exit
tail -n 1 "$2/tasks/a/wait"
stat -c %b "$1/a"
"""
DONE = Outcome(0, f"done\n{SIZE // 512}\n", "")


def job(directory: Path | str, mount: Path | str) -> list[str]:
    """The main job on a file below ``directory``, as a command."""
    return ["bash", "-c", JOB, "job", str(directory), str(mount)]


@pytest.fixture
def everyone(mount_maker: MountMaker) -> Mount:
    """A mount that all users may write to."""
    return mount_maker("mode=0666")


def test_from_a_user_namespace(huge: tuple[Path, TestPool], everyone: Mount, two_users: tuple[User, User]) -> None:
    user = two_users[0]
    assert run(*OWN_USER_NAMESPACE, "--mount", *job(huge[0], everyone.path), user=user) == DONE
    assert (huge[0] / "a").stat().st_uid == user.uid
    (huge[0] / "a").unlink()


def test_from_namespaces_of_mounts_and_pids(huge: tuple[Path, TestPool], everyone: Mount) -> None:
    assert run("unshare", "--mount", "--pid", "--fork", "--mount-proc", *job(huge[0], everyone.path)) == DONE
    (huge[0] / "a").unlink()


@pytest.fixture
def jail(area: Path, huge: tuple[Path, TestPool], everyone: Mount) -> Iterator[Path]:
    """A root directory in which the huge pages and the mount have other names."""
    places: dict[str, Path | str] = {"usr": "/usr", "pages": huge[0], "work": everyone.path, "proc": "/proc"}
    for name, source in places.items():
        (area / "jail" / name).mkdir(parents=True)
        subprocess.run(["mount", "--bind", source, area / "jail" / name], check=True)
    for name in ("bin", "lib", "lib64"):
        (area / "jail" / name).symlink_to(f"usr/{name}")
    yield area / "jail"
    for name in places:
        subprocess.run(["umount", area / "jail" / name], check=True)


@pytest.mark.parametrize("uid", [0, 1000])
def test_from_a_chroot(jail: Path, huge: tuple[Path, TestPool], uid: int) -> None:
    assert run("chroot", f"--userspec={uid}:{uid}", str(jail), *job("/pages", "/work")) == DONE
    assert (huge[0] / "a").stat().st_uid == uid
    (huge[0] / "a").unlink()
