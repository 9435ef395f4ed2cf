"""The version of a release is set in all files that have it, or in none."""

from __future__ import annotations

import datetime
import importlib.util
import shutil
import subprocess
from typing import TYPE_CHECKING, Any, Final

import pytest

from tests.support.daemon import ROOT

if TYPE_CHECKING:
    from pathlib import Path

DAY: Final = datetime.date(2030, 1, 2)
NEXT: Final = "7.8.9"
IDENTITY: Final = ("-c", "user.name=Somebody", "-c", "user.email=somebody@example.invalid")


def script() -> Any:
    spec = importlib.util.spec_from_file_location("release", ROOT / "packaging/release.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def git(directory: Path, *words: str) -> None:
    subprocess.run(["git", *IDENTITY, *words], cwd=directory, check=True, capture_output=True)


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A repository with the files of this one that have the version, and changes for version NEXT."""
    release = script()
    for name in (release.FILE, release.MANIFEST, release.CHANGES):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    changes = tmp_path / release.CHANGES
    changes.write_text(f"# Changes\n\n## [{NEXT}] - unreleased\n\n- A change.\n\n" + changes.read_text())
    git(tmp_path, "init")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "--message=All")
    return tmp_path


def texts(directory: Path) -> dict[Path, str]:
    return {path: path.read_text() for path in directory.rglob("*") if path.is_file() and ".git" not in path.parts}


def test_every_file_gets_the_version(clone: Path) -> None:
    release = script()
    before = release.VERSION.search((clone / release.FILE).read_text())[0]
    release.set_version(clone, NEXT, DAY)
    assert f'VERSION = "{NEXT}"' in (clone / release.FILE).read_text()
    assert f"ktaskfs:{NEXT}" in (clone / release.MANIFEST).read_text()
    changes = (clone / release.CHANGES).read_text()
    assert f"## [{NEXT}] - 2030-01-02\n" in changes
    assert before not in "".join(text for path, text in texts(clone).items() if path.name != "CHANGELOG.md")


def uncommitted(clone: Path) -> str:
    (clone / "new").touch()
    return NEXT


def tagged(clone: Path) -> str:
    git(clone, "tag", f"v{NEXT}")
    return NEXT


@pytest.mark.parametrize(
    ("prepare", "words"),
    [
        (uncommitted, "there are uncommitted changes"),
        (tagged, "the tag v7.8.9 exists already"),
        (lambda _: "7.8", "is no version"),
        (lambda _: "0.0.1", "is older than"),
        (lambda _: "7.9.0", "has no heading"),
    ],
)
def test_a_refused_release_changes_nothing(clone: Path, prepare: Any, words: str) -> None:
    release = script()
    version = prepare(clone)
    before = texts(clone)
    with pytest.raises(release.CannotRelease, match=words):
        release.set_version(clone, version, DAY)
    assert texts(clone) == before
