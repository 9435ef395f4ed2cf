"""``make install`` into a DESTDIR: what goes where, and that nothing is left. tests/systemd/ runs what it installs."""

from __future__ import annotations

import re
import shutil
import sys
from typing import TYPE_CHECKING

import pytest

from ktaskfs.config import parse_options
from ktaskfs.tasks.tunables import TUNABLES
from ktaskfs.version import VERSION
from tests.support.daemon import ROOT
from tests.support.poll import DEADLINE
from tests.support.shell import Outcome, run

if TYPE_CHECKING:
    from pathlib import Path

FIXED = {"/etc/ktaskfs.conf", "/usr/sbin/mount.ktaskfs", "/usr/sbin/mount.fuse.ktaskfs"}
MANUAL_PAGES = (
    *("ktaskfs.1", "ktaskfs.5", "ktaskfs.conf.5", "ktaskfs.d.5"),
    *("ktaskfs-operations.7", "ktaskfs.8", "mount.ktaskfs.8"),
)
BELOW_PREFIX = {
    "sbin/ktaskfs",
    "bin/ktaskfs",
    *(f"lib/systemd/system/{unit}" for unit in ("ktaskfs.service", "ktaskfs-confined.service", "ktaskfs-boot.service")),
    *(f"lib/systemd/system/{unit}" for unit in ("run-ktaskfs.mount", "run-ktaskfs.automount")),
    *(f"lib/systemd/system/{unit}.service.d/node-exporter.conf" for unit in ("ktaskfs", "ktaskfs-confined")),
    "lib/systemd/system/postgresql@.service.d/ktaskfs.conf",
    "lib/systemd/system-preset/90-ktaskfs.preset",
    "lib/sysusers.d/ktaskfs.conf",
    "lib/tmpfiles.d/ktaskfs.conf",
    *(f"share/man/man{page[-1]}/{page}" for page in MANUAL_PAGES),
    "share/bash-completion/completions/ktaskfs",
    "share/zsh/site-functions/_ktaskfs",
    "share/fish/vendor_completions.d/ktaskfs.fish",
    "share/doc/ktaskfs/fstab.example",
    "share/doc/ktaskfs/libvirt_hook.py",
    "share/doc/ktaskfs/slurm_hook.sh",
    "share/doc/ktaskfs/README.md",
}


def install(verb: str, destdir: Path, prefix: str = "/usr/local") -> Outcome:
    """Run the program of the target of make, without its setup, which must not change .venv under the other tests."""
    done = run(sys.executable, str(ROOT / "packaging/install.py"), verb, prefix, str(destdir))
    assert done.status == 0, done.err
    return done


def files(destdir: Path) -> set[str]:
    return {f"/{path.relative_to(destdir)}" for path in destdir.rglob("*") if path.is_symlink() or not path.is_dir()}


@pytest.mark.parametrize("prefix", ["/usr/local", "/usr"])
def test_everything_has_its_place_and_is_removed(tmp_path: Path, prefix: str) -> None:
    install("install", tmp_path, prefix)
    installed = files(tmp_path)
    private = {path for path in installed if path.startswith(f"{prefix}/lib/ktaskfs/")}
    assert {path for path in private if path.endswith("/ktaskfs/cli/main.py")}
    assert installed - private == FIXED | {f"{prefix}/{path}" for path in BELOW_PREFIX}
    named = run("grep", "--recursive", "--files-with-matches", "--fixed-strings", str(tmp_path), str(tmp_path))
    assert named.out == "", "DESTDIR is no part of what is installed"
    assert run("grep", "-rlE", "@[A-Z]+@", f"{tmp_path}{prefix}/lib/systemd", f"{tmp_path}{prefix}/share").out == ""

    install("uninstall", tmp_path, prefix)
    assert files(tmp_path) == set()


def test_a_changed_configuration_is_kept(tmp_path: Path) -> None:
    install("install", tmp_path)
    conf = tmp_path / "etc/ktaskfs.conf"
    conf.write_text("max_threads = 2\n")
    installed = files(tmp_path)
    install("install", tmp_path)  # once more is no harm
    assert files(tmp_path) == installed
    assert "kept, because it was changed: /etc/ktaskfs.conf" in install("uninstall", tmp_path).out
    assert files(tmp_path) == {"/etc/ktaskfs.conf"}
    assert conf.read_text() == "max_threads = 2\n"


def test_the_configuration_shows_every_tunable_with_its_default(tmp_path: Path) -> None:
    conf = tmp_path / "conf"
    conf.write_text(re.sub(r"(?m)^#(?=\w+ =)", "", (ROOT / "systemd/ktaskfs.conf").read_text()))
    values = parse_options("/mnt", [f"statedir=/s,config={conf}"], {}).file_tunables()
    assert values == {each.name: each.default for each in TUNABLES}


def test_pip_gives_the_command(tmp_path: Path) -> None:
    """Without dependencies, which the tests have; from a copy, because building leaves files."""
    source, target = tmp_path / "source", tmp_path / "target"
    shutil.copytree(ROOT / "ktaskfs", source / "ktaskfs")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(target), str(source)]
    assert run(*pip, timeout=5 * DEADLINE).status == 0
    done = run(str(target / "bin/ktaskfs"), "--version", env={"PYTHONPATH": str(target)}, cwd=tmp_path)
    assert done == Outcome(0, f"ktaskfs {VERSION}\n", "")
    installed = {path.relative_to(target / "ktaskfs") for path in (target / "ktaskfs").rglob("*.py")}
    assert installed == {path.relative_to(ROOT / "ktaskfs") for path in (ROOT / "ktaskfs").rglob("*.py")}


@pytest.mark.parametrize(("verb", "python"), [("install", ".venv/bin/python"), ("uninstall", "PYTHONPATH=. python3")])
def test_make_has_the_usual_variables(verb: str, python: str) -> None:
    for variables, arguments in (((), '"/usr/local" ""'), (("PREFIX=/usr", "DESTDIR=/d"), '"/usr" "/d"')):
        done = run("make", "--no-print-directory", "--dry-run", verb, *variables, cwd=ROOT)
        assert done.out.splitlines()[-1] == f"{python} packaging/install.py {verb} {arguments}"
        assert done.err == ""


def test_uninstall_needs_nothing_that_was_built(tmp_path: Path) -> None:
    """The clone may be a new one; and nothing to remove is no error."""
    install("install", tmp_path)
    uninstall = (
        "/usr/bin/python3",
        "-S",
        "-B",
        str(ROOT / "packaging/install.py"),
        "uninstall",
        "/usr/local",
        str(tmp_path),
    )
    for _ in range(2):
        assert run(*uninstall, env={"PYTHONPATH": str(ROOT)}) == Outcome(0, "", "")
        assert files(tmp_path) == set()


def test_set_up_lists_what_each_kind_needs() -> None:
    """Dependencies of the program and of its build include none that only developers need."""

    def listed(*kinds: str) -> set[str]:
        done = run(str(ROOT / "scripts/setup.sh"), "list", *kinds)
        assert done.status == 0, done
        return set(done.out.split())

    assert listed("program") == {"fuse3", "python3"}
    assert {"gcc", "libfuse3-dev", "pkg-config"} <= listed("build")
    assert {"busybox", "podman", "zsh"} <= listed("tests")
    assert not listed("tests") & listed("program", "build")
    assert run(str(ROOT / "scripts/setup.sh"), "list", "other").status == 1
