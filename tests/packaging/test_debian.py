"""The Debian package on a fresh system of each release with its own systemd, and in the image for containers.

All of it is in one file, so that one process of the test run builds the packages.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from typing import TYPE_CHECKING, Final

import pytest

from ktaskfs.version import VERSION
from tests.packaging.build import OLDER, check, older
from tests.packaging.chroot import INSTALL, NEWEST, archive, fresh
from tests.packaging.exporter import EXPORTER, OWN_NETWORK, Exporter
from tests.packaging.podman import Podman
from tests.support.daemon import ROOT
from tests.support.packages import Unavailable
from tests.support.poll import DEADLINE, until
from tests.support.shell import Outcome, run
from tests.systemd.machine import booted_with

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.packaging.build import Built
    from tests.systemd.machine import Machine

pytestmark = pytest.mark.timeout(1800)
"""Seconds: the first run on a machine downloads two systems and the build dependencies."""
APT_PATIENCE: Final = 600
"""Seconds for apt, which compiles Python's modules; on a quiet machine it takes ten."""
BASE: Final = "localhost/debian:test"
IMAGE: Final = "localhost/ktaskfs:test"
UNIT: Final = "ktaskfs.service"
FILES: Final = (
    *("/etc/ktaskfs.conf", "/etc/ktaskfs.d", "/usr/bin/ktaskfs", "/usr/sbin/ktaskfs", "/usr/sbin/mount.ktaskfs"),
    *(f"/usr/lib/systemd/system/{unit}" for unit in (UNIT, "ktaskfs-confined.service", "ktaskfs-boot.service")),
    *(f"/usr/lib/systemd/system/{unit}" for unit in ("run-ktaskfs.mount", "run-ktaskfs.automount")),
    *("/usr/lib/sysusers.d/ktaskfs.conf", "/usr/lib/tmpfiles.d/ktaskfs.conf"),
    *(f"/usr/share/man/man{page[-1]}/{page}.gz" for page in ("ktaskfs.1", "ktaskfs.5", "ktaskfs.d.5", "ktaskfs.8")),
    "/usr/share/man/man7/ktaskfs-operations.7.gz",
    *(f"/usr/share/doc/ktaskfs/{hook}" for hook in ("libvirt_hook.py", "slurm_hook.sh")),
    "/usr/share/bash-completion/completions/ktaskfs",
    "/usr/share/zsh/site-functions/_ktaskfs",
    "/usr/share/fish/vendor_completions.d/ktaskfs.fish",
)
MODULES: Final = "import blake3, isal.isal_zlib, psutil, pyfuse3, rich, setproctitle, textual, trio, xxhash"
SETUP: Final = """
echo '127.0.0.1 localhost' >/etc/hosts
useradd --create-home ann
"""
"""Done by an installer of Debian; without /etc/hosts some package creates it."""
NOTED: Final = ("/var/lib/dpkg", "/var/lib/apt", "/var/cache", "/var/log", "/root", "/var/lib/systemd", "/var/tmp")
"""Directories where apt and dpkg record their work, and systemd the services that have run."""
CHANGES: Final = f"find / -xdev {' '.join(f'-path {each} -prune -o' for each in NOTED)} -print"
QUIET: Final = f"{INSTALL} --no-install-recommends >/root/apt.log 2>&1 || {{ cat /root/apt.log; false; }}"


def install(machine: Machine, package: str) -> None:
    done = machine.sh(QUIET.replace("install ", f"install /root/{package} "), timeout=APT_PATIENCE)
    assert done.status == 0, done.out


def test_lintian_finds_no_error(built: Built) -> None:
    assert "E: " not in check(built)


def test_from_the_installation_to_the_removal(built: Built, tmp_path: Path) -> None:
    def fill(layer: Path) -> None:
        (layer / "root").mkdir(mode=0o700)
        shutil.move(older(built, tmp_path), layer / "root/older.deb")
        shutil.copy(built.package, layer / "root/newer.deb")
        if exporter is not None:
            shutil.copy(exporter, layer / "root/exporter.deb")

    exporter, reason = None, ""
    try:
        exporter = archive(built.release, EXPORTER)
    except Unavailable as error:
        reason = str(error)
    with booted_with(fill, SETUP + OWN_NETWORK, fresh(built.release)) as machine:
        before = machine.out("sh", "-c", CHANGES)
        install(machine, "older.deb")
        is_complete(machine)
        serves(machine)
        is_upgraded_under_a_task(machine)
        if exporter is not None:
            is_read_by_node_exporter(machine)
        leaves_nothing(machine, before)
    if exporter is None:
        pytest.skip(reason)


def is_complete(machine: Machine) -> None:
    """All files are in their places, and no service runs uninvited."""
    assert set(FILES) <= set(machine.out("dpkg", "--listfiles", "ktaskfs").split())
    assert machine.out("dpkg-query", "-W", "-f", "${Conffiles}", "ktaskfs").split()[0] == "/etc/ktaskfs.conf"
    assert machine.run("/usr/lib/ktaskfs/bin/python", "-I", "-c", MODULES) == Outcome(0, "", "")
    assert machine.run("systemctl", "is-enabled", UNIT).out == "disabled\n"
    assert machine.show(UNIT, "ActiveState") == "inactive"


def serves(machine: Machine) -> None:
    """The service is up with two commands, and a member of the group runs the main job."""
    assert machine.run("systemctl", "--quiet", "enable", "--now", UNIT).status == 0
    assert machine.run("usermod", "--append", "--groups", "ktask", "ann").status == 0
    assert machine.out("cat", "/run/ktaskfs/version") == f"{OLDER}\n"
    machine.start_slow_task("job")
    machine.finish_task("job")
    assert machine.out("cat", "/run/ktaskfs/tasks/job/state", user="ann") == "done\n"


def is_upgraded_under_a_task(machine: Machine) -> None:
    """The worker of 0.1.0 continues, the next daemon adopts it, and the changed configuration stays."""
    assert machine.sh("echo 'max_threads = 3' >> /etc/ktaskfs.conf").status == 0
    machine.start_slow_task("long")
    workers, daemon = machine.workers(), machine.show(UNIT, "MainPID")
    install(machine, "newer.deb")
    machine.until_mounted()
    assert machine.show(UNIT, "MainPID") != daemon
    assert machine.out("cat", "/run/ktaskfs/version") == f"{VERSION}\n"
    assert machine.out("cat", "/run/ktaskfs/debug/ktask_max_threads") == "3\n"
    assert machine.workers() == workers
    assert machine.sh("cd /run/ktaskfs/tasks && cat job/state long/state", user="ann").out == "done\nrunning\n"
    rows = machine.out("ktaskfs", "ls", user="ann").splitlines()[1:]
    assert {row.split()[0] for row in rows} == {"job", "long"}
    machine.finish_task("long")


def is_read_by_node_exporter(machine: Machine) -> None:
    """Without a command of the administrator; a service that is off is no error, one that failed is one."""
    exporter = Exporter(machine)
    install(machine, "exporter.deb")
    assert exporter.errors_and_versions() == (0, [VERSION]), "the service runs before the exporter is installed"
    for unit in (UNIT, "ktaskfs-confined.service"):
        assert machine.run("systemctl", "stop", UNIT).status == 0
        assert exporter.errors_and_versions() == (0, [])
        machine.start(unit)
        assert exporter.errors_and_versions() == (0, [VERSION])
        assert machine.run("systemctl", "stop", unit).status == 0
        assert exporter.errors_and_versions() == (0, [])
    machine.start(UNIT)
    assert (
        machine.sh("mv /etc/ktaskfs.conf /root; echo x > /etc/ktaskfs.conf; systemctl kill -s KILL ktaskfs").status == 0
    )
    until(lambda: machine.show(UNIT, "ActiveState") == "failed", "systemd gives up")
    assert exporter.errors_and_versions() == (1, [])
    assert machine.sh("mv /root/ktaskfs.conf /etc").status == 0
    machine.start(UNIT)
    assert exporter.errors_and_versions() == (0, [VERSION])


def leaves_nothing(machine: Machine, before: str) -> None:
    """Of the package, nor of what came with it; also if somebody's directory is in the mount."""
    script = "cd /run/ktaskfs && exec sleep infinity"  # WorkingDirectory= would have it stopped with the mount
    reader = ("systemd-run", "--quiet", "--unit=reader", "--service-type=exec", "sh", "-c", script)
    assert machine.run(*reader).status == 0
    assert machine.sh("echo 'fallocate path=/dev/shm/x length=1M' > /etc/ktaskfs.d/10.tasks").status == 0
    removed = machine.sh(
        "DEBIAN_FRONTEND=noninteractive apt-get -q -y autoremove --purge ktaskfs 2>&1", timeout=APT_PATIENCE
    )
    assert removed.status == 0, removed.out
    assert machine.run("systemctl", "stop", "reader").status == 0
    assert Exporter(machine).errors_and_versions() == (0, [])
    Exporter(machine).purge()
    assert sorted(set(machine.out("sh", "-c", CHANGES).split()) - set(before.split())) == []
    assert machine.sh("find /run /dev/shm -iname '*ktask*'; getent group ktask; pgrep --full ktask").out == ""
    assert machine.out("systemctl", "list-units", "--failed", "--plain", "--no-legend", "*ktask*") == ""
    mounts = [line.split()[1:3] for line in machine.out("cat", "/proc/self/mounts").splitlines()]
    assert not any("ktask" in place or "ktask" in kind for place, kind in mounts)


@pytest.fixture
def podman(built: Built, disk: Path) -> Iterator[Podman]:
    """With the release's fresh system as an image."""
    if missing := [name for name in ("podman", "runc") if shutil.which(name) is None]:
        pytest.skip(f"not installed: {' '.join(missing)}")
    podman = Podman(disk)
    with subprocess.Popen(["tar", "-C", fresh(built.release), "-c", "."], stdout=subprocess.PIPE) as tar:
        subprocess.run(podman.words("import", "--quiet", "-", BASE), stdin=tar.stdout, check=True, capture_output=True)
    yield podman
    # A container that has just ended may still write its event, so that a directory is not empty.
    until(lambda: podman("system", "reset", "--force").status == 0, "podman removes its storage")


@pytest.mark.parametrize("built", [NEWEST], indirect=True)
def test_the_image_serves_the_host(podman: Podman, built: Built, area: Path) -> None:
    limits = ("--ulimit=nofile=1024:1024", "--ulimit=nproc=1024:1024")  # there may be no right to raise them
    build = ("build", *limits, "--isolation=chroot", "--network=host", f"--build-arg=BASE={BASE}", f"--tag={IMAGE}")
    done = podman(*build, f"--file={ROOT / 'packaging/Containerfile'}", str(built.directory))
    assert done.status == 0, done.out + done.err
    subprocess.run(["mount", "--bind", area, area], check=True)
    subprocess.run(["mount", "--make-shared", area], check=True)
    (area / "mount").mkdir()
    host = ("--privileged", "--pid=host", "--cgroupns=host", "--volume=/sys/fs/cgroup:/sys/fs/cgroup:rslave")
    options = ("run", "--rm", "--network=none", *limits)
    group = podman(*options, IMAGE, "getent", "group", "ktask").out.split(":")[2]
    command = podman.words(*options, *host, f"--volume={area}:/run/ktaskfs:rshared", IMAGE)
    try:
        with subprocess.Popen(command, stdin=subprocess.DEVNULL, env=os.environ) as daemon:
            until(lambda: daemon.poll() is not None or (area / "mount/version").exists(), "the mount is seen outside")
            assert (area / "mount/version").read_text() == f"{VERSION}\n"
            assert run("stat", "-L", "-c", "%g %a", f"{area}/mount/tasks/control").out == f"{group} 660\n"
            spec = f"fallocate path=/dev/shm/{area.name} length=4M name=a"
            job = run("sh", "-c", f"echo '{spec}' > {area}/mount/tasks/control && tail -n 1 {area}/mount/tasks/a/wait")
            assert job == Outcome(0, "done\n", "")
            until(lambda: run("umount", str(area / "mount")).status == 0, "it is unmounted")
            assert daemon.wait(DEADLINE) == 0
    finally:
        run("rm", "-f", f"/dev/shm/{area.name}")
        run("umount", "--recursive", "--lazy", str(area))
