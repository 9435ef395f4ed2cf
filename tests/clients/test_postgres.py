"""A real PostgreSQL, and the page of the documentation for it."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from tests.support import packages
from tests.support.daemon import ROOT
from tests.support.filesystems import page_sizes
from tests.support.hugepages import reserved
from tests.support.shell import run, shell

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.daemon import Mount
    from tests.support.users import User

PAGE: Final = ROOT / "docs/how-to/database.md"
CLUSTER: Final = "/var/lib/postgresql/15/main"
CONFIGURATION: Final = "/etc/postgresql/15/main"
PROGRAMS: Final = "/usr/lib/postgresql/15/bin"
"""Where the page has a cluster, its configuration, and its programs."""
PAGES: Final = 48
HUGE: Final = 2 << 20
SETTINGS: Final = """
listen_addresses = ''
max_connections = 10
shared_buffers = 32MB
"""
pytestmark = pytest.mark.skipif(page_sizes()[:1] != [HUGE], reason="the page is for huge pages of 2M")


@dataclass(frozen=True)
class Cluster:
    """A new cluster, and what its user does with it."""

    programs: Path
    data: Path
    configuration: Path
    user: User

    def run(self, program: str, *arguments: str) -> str:
        """The output of one of the server's programs, or of the program with this path."""
        done = run(str(self.programs / program), *arguments, user=self.user, cwd=self.user.home)
        assert done.status == 0, done.err
        return done.out

    @contextlib.contextmanager
    def started(self, **settings: str) -> Iterator[None]:
        """The server runs, with these settings."""
        options = " ".join(f"-c {name}={value}" for name, value in settings.items())
        log = str(self.user.home / "log")
        control = ("pg_ctl", "-D", str(self.configuration), "-w", "-s")
        with contextlib.ExitStack() as stack:
            self.run(*control, "-l", log, "-o", f"-k {self.user.home} {options}", "start")
            stack.callback(self.run, *control, "-m", "fast", "stop")
            yield

    def sql(self, command: str) -> str:
        return self.run("/usr/bin/psql", "-h", str(self.user.home), "-d", "postgres", "-Atqc", command)


def _programs() -> Path:
    """PostgreSQL as installed, or unpacked from Debian's packages: their installation would start a server."""
    if found := sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres")):
        return found[-1].parent
    try:
        with packages.cache():
            command = ["apt-cache", "depends", "postgresql"]
            text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            version = re.search(r"Depends: postgresql-(\d+)", text)
            assert version is not None
            packages.apt_get("install", "--no-install-recommends", f"postgresql-client-{version[1]}")
            unpacked = packages.unpacked(f"postgresql-{version[1]}")
    except packages.Unavailable as error:
        pytest.skip(str(error))
    return unpacked / f"usr/lib/postgresql/{version[1]}/bin"


@pytest.fixture(scope="module")
def cluster(two_users: tuple[User, User]) -> Iterator[Cluster]:
    """A cluster with a table of a few megabytes, on a disk: /tmp may be tmpfs.

    Its configuration has a directory of its own, as on Debian.
    """
    user = two_users[0]
    with tempfile.TemporaryDirectory(prefix="kt-", dir="/var/tmp") as place:
        os.chown(place, user.uid, user.gid)
        found = Cluster(_programs(), Path(place, "main"), Path(place, "etc"), user)
        found.run("initdb", "-D", str(found.data), "-A", "trust", "--no-sync")
        found.configuration.mkdir()
        for name in ("postgresql.conf", "pg_hba.conf", "pg_ident.conf"):
            (found.data / name).rename(found.configuration / name)
        with (found.configuration / "postgresql.conf").open("a") as file:
            file.write(f"{SETTINGS}data_directory = '{found.data}'\n")
        with found.started(huge_pages="off"):
            found.sql("create table t as select generate_series(1, 100000) as n")
        yield found


def commands(cluster: Cluster, mount: Mount, prompt: str) -> list[str]:
    """The commands on the page, for this cluster and this mount."""
    names = {
        CLUSTER: str(cluster.data),
        CONFIGURATION: str(cluster.configuration),
        PROGRAMS: str(cluster.programs),
        "ktaskfs run": f"{sys.executable} -m ktaskfs.cli.main run -q -m {mount.path}",
        "/root": str(cluster.user.home),
    }
    lines = [line[6:] for line in PAGE.read_text().splitlines() if line.startswith(f"    {prompt} ")]
    for name, here in names.items():
        lines = [line.replace(name, here) for line in lines]
    return lines


def as_root(*lines: str) -> str:
    done = shell("\n".join(["set -e", *lines]), cwd=ROOT)
    assert done.status == 0, done.err
    return done.out


def test_its_shared_buffers_are_there_before_they_are_used(cluster: Cluster, mounted: Mount) -> None:
    (wanted,) = commands(cluster, mounted, "$")
    _, pid, fallocate, plan, _, _, survey = commands(cluster, mounted, "#")[:7]
    with reserved(HUGE, PAGES):
        pages = int(shell(wanted, user=cluster.user, cwd=cluster.user.home).out)
        assert 16 < pages < PAGES
        with cluster.started(huge_pages="on"):
            told = as_root(pid, plan)
            assert f"\ntotal {pages * HUGE}\n" in told
            assert "\nallocates 0\n" not in told
            as_root(pid, fallocate)
            assert "\nallocates 0\n" in as_root(pid, plan)
            assert cluster.sql("select count(*), sum(n) from t") == "100000|5000050000\n"
            assert "page_size 4096\n" in as_root(pid, survey)


def test_a_segment_of_small_pages(cluster: Cluster, mounted: Mount) -> None:
    """PostgreSQL has no huge pages in SysV segments; no path leads to them either."""
    _, pid, _, _, mapping, fallocate = commands(cluster, mounted, "#")[:6]
    plan = f"{fallocate} plan=1"
    with cluster.started(huge_pages="off", shared_memory_type="sysv"):
        assert "\nallocates 0\n" not in as_root(pid, mapping, plan)
        as_root(pid, mapping, fallocate)
        assert "\nallocates 0\n" in as_root(pid, mapping, plan)
        assert cluster.sql("select count(*), sum(n) from t") == "100000|5000050000\n"


def test_small_pages_become_huge_ones(cluster: Cluster, mounted: Mount) -> None:
    pid, *_, collapse = [each for each in commands(cluster, mounted, "#") if "pid=" in each and "mapping" not in each]
    with cluster.started(huge_pages="off"):
        found = dict(line.split() for line in as_root(pid, collapse).splitlines())
        assert int(found["collapsed"]) + int(found["left"]) > 0
        assert cluster.sql("select count(*), sum(n) from t") == "100000|5000050000\n"


def test_its_files(cluster: Cluster, mounted: Mount) -> None:
    *running, checksum = [each for each in commands(cluster, mounted, "#") if str(cluster.data) in each][1:]
    with cluster.started(huge_pages="off"):
        out = as_root(*running)
        assert out.count("skipped 0\n") == len(running)
        assert cluster.sql("select count(*), sum(n) from t") == "100000|5000050000\n"
    as_root(checksum)
    digests = cluster.user.home / "main.sha256"
    done = run("sha256sum", "--quiet", "-c", str(digests), cwd=cluster.data)
    assert (done.status, done.out) == (0, "")
    assert len(digests.read_text().splitlines()) == sum(len(files) for _, _, files in os.walk(cluster.data))
