"""The wheel and the source archive; pipx(1) installs the wheel."""

from __future__ import annotations

import shutil
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Final

import pytest

from ktaskfs.version import VERSION
from tests.support.daemon import ROOT
from tests.support.shell import Outcome, run

PATIENCE: Final = 280
"""Seconds for pip, which may have to download and compile."""


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The source archive, and the wheel made of it; from a copy, because a build leaves files."""
    source = tmp_path_factory.mktemp("source")
    shutil.copytree(ROOT / "ktaskfs", source / "ktaskfs", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    done = run(sys.executable, "-m", "build", "--quiet", str(source), timeout=PATIENCE)
    assert done.status == 0, done.out + done.err
    return sorted((source / "dist").iterdir())


def test_what_is_in_them(archives: list[Path]) -> None:
    sources = {path.relative_to(ROOT).as_posix() for path in (ROOT / "ktaskfs").rglob("*.py")} | {"ktaskfs/py.typed"}
    wheel, source = archives
    with zipfile.ZipFile(wheel) as opened:
        assert {name for name in opened.namelist() if name.startswith("ktaskfs/")} == sources
    with tarfile.open(source) as opened_source:
        names = {name.partition("/")[2] for name in opened_source.getnames() if not name.endswith("/")}
    assert sources | {"pyproject.toml", "README.md", "LICENSE"} <= names
    assert not any(name.startswith("tests") for name in names)


def test_the_metadata_is_as_pypi_wants_it(archives: list[Path]) -> None:
    done = run(sys.executable, "-m", "twine", "check", "--strict", *map(str, archives))
    assert done.status == 0, done.out + done.err
    assert done.out.count("PASSED") == len(archives)


def test_pipx_installs_a_command_that_mounts(archives: list[Path], area: Path, root: None) -> None:
    """The wheel names all dependencies."""
    own = area / "pipx"
    assert run(sys.executable, "-m", "venv", str(own)).status == 0
    done = run(str(own / "bin/python"), "-m", "pip", "install", "--quiet", "pipx", timeout=PATIENCE)
    assert done.status == 0, done.err
    places = {"PIPX_HOME": area / "home", "PIPX_BIN_DIR": area / "bin", "PIPX_MAN_DIR": area / "man"}
    variables = {name: str(place) for name, place in places.items()}
    pipx = str(own / "bin/pipx")
    done = run(pipx, "install", f"{archives[0]}[top]", env=variables, timeout=PATIENCE)
    assert done.status == 0, done.err
    command = str(area / "bin/ktaskfs")
    assert run(command, "--version", cwd=area) == Outcome(0, f"ktaskfs {VERSION}\n", "")
    python = str(area / "home/venvs/ktaskfs/bin/python")
    assert run(python, "-m", "pip", "check").status == 0
    assert run(python, "-c", "import textual").status == 0

    point = area / "mount"
    point.mkdir()
    memory = Path("/dev/shm", area.name)
    mounted = run(command, "mount", "-o", f"statedir={area / 'state'}", str(point), cwd=area)
    assert mounted.status == 0, mounted.err
    try:
        job = run(command, "run", "-m", str(point), f"fallocate path={memory} length=1M name=a", cwd=area)
        assert job.status == 0, job.err
        assert memory.stat().st_blocks * 512 == 1 << 20
    finally:
        memory.unlink(missing_ok=True)
        assert run("umount", str(point)).status == 0
    assert run(pipx, "uninstall", "ktaskfs", env=variables).status == 0
    assert list((area / "bin").iterdir()) == []
