"""The main job from within containers of podman."""

from __future__ import annotations

import re
import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.containers.conftest import HUGE, INSIDE
from tests.support import filesystems
from tests.support.daemon import ROOT, interpreter
from tests.support.poll import DEADLINE, until
from tests.support.shell import Outcome, environment, run, shell

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.conftest import MountMaker
    from tests.containers.conftest import Podman
    from tests.support.daemon import Mount
    from tests.support.hugepages import TestPool

SIZE = 20 * HUGE
JOB = f"""
echo "fallocate path={INSIDE}/huge/a length={SIZE} name=a" > tasks/control || exit
tail -n 1 tasks/a/wait
stat -c '%u %b' {INSIDE}/huge/a
"""
BASE = 200000
MAPPED = (f"--uidmap=0:{BASE}:65536", f"--gidmap=0:{BASE}:65536")


def at(mount: Mount) -> str:
    """The option that makes the mount the working directory."""
    return f"--workdir={INSIDE}/{mount.path.name}"


@pytest.mark.parametrize(
    ("options", "uid", "base"),
    [
        ((), 0, 0),
        (("--user=1000:1000",), 1000, 0),
        (("--cap-drop=all",), 0, 0),
        (("--pid=host",), 0, 0),
        (("--read-only",), 0, 0),
        (MAPPED, 0, BASE),
        ((*MAPPED, "--user=1000:1000"), 1000, BASE),
    ],
    ids=["root", "user", "no-capability", "host-pids", "read-only", "user-namespace", "user-in-user-namespace"],
)
def test_the_main_job(
    podman: Podman,
    huge: tuple[Path, TestPool],
    shared_mount: Mount,
    options: tuple[str, ...],
    uid: int,
    base: int,
) -> None:
    directory, pool = huge
    free = pool.free
    outcome = podman.sh(JOB, at(shared_mount), *options, owner=base)
    assert outcome == Outcome(0, f"done\n{uid} {SIZE // 512}\n", "")
    assert (directory / "a").stat().st_uid == base + uid
    assert pool.free == free - SIZE // HUGE
    (directory / "a").unlink()


def test_a_group_of_the_hosts_may_start_tasks(
    podman: Podman, huge: tuple[Path, TestPool], mount_maker: MountMaker
) -> None:
    """supplementalGroups of Kubernetes; without the group a container's user is refused."""
    mount = mount_maker("gid=4321,mode=0660")
    options = (at(mount), "--user=1000:1000")
    assert podman.sh(JOB, *options).errname == "EACCES"
    assert podman.sh(JOB, *options, "--group-add=4321").out.startswith("done\n")
    (huge[0] / "a").unlink()


def test_a_new_mount_is_seen_in_a_container_that_runs(podman: Podman, mount_maker: MountMaker) -> None:
    """As after a restart of the daemon."""
    first = mount_maker()
    script = f"touch {INSIDE}/ready; until [ -e {INSIDE}/again ]; do sleep 0.01; done; cat {INSIDE}/mount1/version"
    command = [*podman.command(), "bash", "-c", script]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment(None)) as container:
        until((podman.area / "ready").exists, "the container runs")
        first.close()
        second = mount_maker()
        assert second.path.name == "mount1"
        (podman.area / "again").touch()
        assert container.stdout is not None
        assert container.stdout.read() == second.read("version")
    assert container.returncode == 0


@pytest.fixture
def daemon(podman: Podman) -> Iterator[subprocess.Popen[bytes]]:
    """A daemon in a container, as in docs/how-to/ktaskfs-kubernetes.yaml."""
    (podman.area / "mount").mkdir()
    host = ("--privileged", "--pid=host", "--cgroupns=host", "--volume=/sys/fs/cgroup:/sys/fs/cgroup:rslave")
    options = (*host, f"--volume={ROOT}:{ROOT}:ro", f"--workdir={ROOT}")
    command = [*podman.command(*options, propagation="rshared"), interpreter(ROOT), "-m", "ktaskfs.cli.main", "mount"]
    mount = ["--foreground", "-o", f"mode=0666,statedir={INSIDE}/state", f"{INSIDE}/mount"]
    daemon = subprocess.Popen([*command, *mount], stdin=subprocess.DEVNULL, env=environment(None))

    def answers() -> bool:
        assert daemon.poll() is None
        return (podman.area / "mount/version").exists()

    try:
        until(answers, "the mount is seen outside")
        yield daemon
        until(lambda: run("umount", str(podman.area / "mount")).status == 0, "it is unmounted")
        assert daemon.wait(DEADLINE) == 0
    finally:
        if daemon.poll() is None:
            daemon.terminate()  # podman passes it on to the daemon
            daemon.wait(DEADLINE)


def test_a_daemon_in_a_container_serves_others(
    podman: Podman, huge: tuple[Path, TestPool], daemon: subprocess.Popen[bytes]
) -> None:
    """Others are containers, with a user namespace or without, and the host."""
    directory, _pool = huge
    options = (f"--workdir={INSIDE}/mount", "--user=1000:1000")
    for mapped, base in (((), 0), (MAPPED, BASE)):
        outcome = podman.sh(JOB, *options, *mapped, owner=base)
        assert outcome == Outcome(0, f"done\n1000 {SIZE // 512}\n", "")
        assert (directory / "a").stat().st_uid == base + 1000
        (directory / "a").unlink()
        (podman.area / "mount/tasks/a").rmdir()
    outcome = shell(JOB.replace(INSIDE, str(podman.area)), cwd=podman.area / "mount")
    assert outcome == Outcome(0, f"done\n0 {SIZE // 512}\n", "")
    (directory / "a").unlink()


@pytest.mark.usefixtures("patient")
def test_the_containers_limit_on_memory_holds(podman: Podman, shared_mount: Mount) -> None:
    """Up to the limit a task is done. Past it the start is refused, with the container's group and limit; nothing is
    killed."""
    script = f"""
    sleep infinity & neighbour=$!
    echo "fallocate path={INSIDE}/memory/a length=256M" > tasks/control
    cat info/last_cmd_status
    echo "fallocate path={INSIDE}/memory/a length=128M name=a" > tasks/control
    tail -n 1 tasks/a/wait
    kill $neighbour
    """
    with filesystems.tmpfs(podman.area / "memory", 512 << 20) as memory:
        outcome = podman.sh(script, at(shared_mount), "--memory=200m")
        assert outcome.status == 0, outcome
        assert outcome.errname == "ENOMEM"
        said, end = outcome.out.splitlines()
        assert end == "done"
        assert re.search(r"group \S+ has \S+B left: memory\.\w+ is 200\.0MiB, \S+B in use", said), said
        (memory / "a").unlink()
