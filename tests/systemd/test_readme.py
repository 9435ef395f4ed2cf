"""README as a new user meets it: every block of commands, in the order of the page, each from a fresh state.

Also the tutorial, and the page about installing, where README sends other users than root.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final

import pytest

from ktaskfs.version import VERSION
from tests.support.daemon import ROOT
from tests.support.documents import Block, blocks
from tests.support.hugepages import reserved
from tests.support.packages import Unavailable, cache
from tests.support.poll import DEADLINE
from tests.systemd.machine import Machine, booted

if TYPE_CHECKING:
    from collections.abc import Iterator

BLOCKS: Final = blocks(ROOT / "README.md")
INSTALLING: Final = [each for each in BLOCKS if each.heading == "Install"]
ANYWHERE: Final = [each for each in BLOCKS if each.heading.startswith("Two minutes")]
FOR_OTHERS: Final = [each for each in blocks(ROOT / "docs/how-to/install.md") if each.heading == "Who may use it"]
WITH_THE_SERVICE: Final = [each for each in BLOCKS if each not in INSTALLING + ANYWHERE] + FOR_OTHERS
PAGE: Final = 2 << 20
RECIPE_PAGES: Final = 128
"""Pages that the recipes expect in the pool."""
DOWNLOADS: Final = 1500
"""Seconds for apt, pip and a compiler on a busy machine."""
CLONE: Final = "cd /disk/ktaskfs; export HOME=/root"
"""Where a new user is; with a home, so that pip compiles pyfuse3 once for both ways to install."""
FOR_TESTS: Final = ("pytest", "mypy", "ruff", "hypothesis")
ABSENT: Final = ("gcc", "libfuse3-dev", "pkg-config", "busybox", "nodejs", "podman", "zsh", "fish")
"""Debian packages that the machine must have neither before nor after the installation."""


def paste(
    machine: Machine, block: Block, *, user: str | None = None, timeout: float = 4 * DEADLINE, before: str = ""
) -> str:
    """Run a block as bash does at a prompt, except that the first failed command ends it; returns the output."""
    done = machine.sh(f"set -eu -o pipefail\n{before}\n{block.text}", user=user, timeout=timeout)
    assert done.status == 0, f"{block}:\n{done.out}{done.err}"
    return done.out + done.err


def test_the_page_is_short_and_has_all_its_parts() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) < 120
    assert (len(INSTALLING), len(ANYWHERE), len(FOR_OTHERS)) == (2, 1, 1)
    assert len(WITH_THE_SERVICE) >= 5


@pytest.fixture
def new_machine(root: None) -> Iterator[Machine]:
    """A machine without ktaskfs, without a compiler and what else only developers have, and a clone in its /disk."""
    with booted() as machine:
        files = "git -c safe.directory='*' ls-files -z --cached --others --exclude-standard"
        copied = machine.sh(f"cd {ROOT} && {files} | rsync --from0 --files-from=- ./ /disk/ktaskfs/")
        assert copied.status == 0, copied
        bare = f"""
            cp -a /var/lib/dpkg /disk/dpkg # others may install packages meanwhile, below the overlay
            mount --bind /disk/dpkg /var/lib/dpkg
            systemctl disable --now --quiet ktaskfs
            cd {ROOT} && .venv/bin/python packaging/install.py uninstall /usr && groupdel ktask
            systemctl daemon-reload
            DEBIAN_FRONTEND=noninteractive apt-get -q -y remove {" ".join(ABSENT)}
        """
        removed = machine.sh(f"set -eu; {bare}", timeout=DOWNLOADS)
        assert removed.status == 0, removed
        assert installed(machine) == set()
        yield machine


def installed(machine: Machine) -> set[str]:
    """The installed packages of those that no user of ktaskfs needs."""
    states = machine.sh(f"dpkg-query -W -f '${{Package}} ${{db:Status-Status}}\\n' {' '.join(ABSENT)} 2>/dev/null").out
    return {line.split()[0] for line in states.splitlines() if line.endswith(" installed")}


@pytest.mark.timeout(3 * DOWNLOADS)
def test_install_takes_nothing_that_a_user_does_not_need(new_machine: Machine) -> None:
    from_source, with_pipx = INSTALLING
    try:
        with cache():  # shows whether packages are available
            pass
    except Unavailable as error:
        pytest.skip(str(error))
    paste(new_machine, from_source, before=CLONE, timeout=DOWNLOADS)
    assert installed(new_machine) == set()
    new_machine.until_mounted()
    listed = new_machine.out("find", "/usr/local/lib/ktaskfs", "/disk/ktaskfs/.venv", "-maxdepth", "5", "-type", "d")
    assert [name for name in FOR_TESTS if f"/{name}\n" in listed] == []
    assert "ktask" in new_machine.out("id", "--groups", "--name", "root")
    assert new_machine.sh("cd /tmp && ktaskfs run fallocate path=/dev/shm/one length=1M name=one").status == 0
    off = "systemctl disable --now ktaskfs && make -C /disk/ktaskfs uninstall && ! ls /usr/local/sbin/ktaskfs"
    removed = new_machine.sh(off)
    assert removed.status == 0, removed

    paste(new_machine, with_pipx, before=CLONE, timeout=DOWNLOADS)
    assert new_machine.sh("HOME=/root /root/.local/bin/ktaskfs --version").out == f"ktaskfs {VERSION}\n"


@pytest.fixture
def service(machine: Machine, request: pytest.FixtureRequest) -> Iterator[Machine]:
    """The service without tasks, and an empty hugetlbfs on /dev/hugepages with the pages of the recipes in the pool."""
    clear = "systemctl stop ktaskfs; rm -rf /run/ktaskfs-state"
    reserves = "ktaskfs run reserve" in request.node.callspec.params["block"].text
    with reserved(PAGE, 0 if reserves else RECIPE_PAGES):
        assert machine.sh(clear).status == 0
        machine.start("ktaskfs")
        machine.until_mounted()
        if not reserves:
            assert machine.sh("mount -t hugetlbfs none /dev/hugepages").status == 0
        yield machine
        machine.sh("rm -rf /dev/hugepages/*; umount /dev/hugepages; systemctl stop ktaskfs")


@pytest.mark.parametrize("user", ["root", "ann"])
@pytest.mark.parametrize("block", ANYWHERE, ids=str)
def test_on_any_machine(machine: Machine, block: Block, user: str) -> None:
    """As root and as an ordinary user, where no service runs."""
    home = machine.out("mktemp", "--directory").strip()
    assert machine.sh(f"systemctl stop ktaskfs; chown {user} {home}").status == 0
    said = paste(machine, block, user=user, before=f"export HOME={home}")
    assert "\ndone\n" in said
    assert "crc32" in said
    left = machine.sh(f"ls -d /tmp/kt /dev/shm/first; ls -A {home}").out
    assert left == "", "the block takes away what it has made, and the records of its tasks"


def test_the_tutorial(machine: Machine) -> None:
    """As an ordinary user: one block after another, as a reader goes on."""
    home = machine.out("mktemp", "--directory").strip()
    assert machine.sh(f"systemctl stop ktaskfs; chown ann {home}").status == 0
    steps = blocks(ROOT / "docs/tutorial/first-steps.md")
    whole = Block("tutorial", "all of it", 1, "\n".join(each.text for each in steps))
    said = paste(machine, whole, user="ann", before=f"export HOME={home}").splitlines()
    assert {"done", "cancelled", "the task is done"} <= set(said)
    assert any("lenght" in line for line in said), "the word that is wrong"
    left = machine.sh(f"ls -d /tmp/kt /dev/shm/first; ls -A {home}").out
    assert left == "", "it takes away what it has made, and the records of its tasks"


@pytest.mark.parametrize("block", WITH_THE_SERVICE, ids=str)
def test_with_the_service(service: Machine, block: Block) -> None:
    paste(service, block)
    tasks = [json.loads(line) for line in service.out("ktaskfs", "ls", "--json").splitlines()]
    assert {each["state"] for each in tasks} <= {"done"}
    assert ("ktaskfs" in block.text) == bool(tasks)
    if "install -d" in block.text:
        spec = "fallocate path=/dev/hugepages/ktask/of-ann length=2M name=of-ann"
        done = service.run("ktaskfs", "run", *spec.split(), user="ann")
        assert done.status == 0, done
