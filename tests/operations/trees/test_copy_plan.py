"""``copy`` of a directory with plan=1: it says what a start would do."""

from __future__ import annotations

import errno
import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.operations.trees.ground import make
from tests.support import filesystems

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.runner import Runner


@pytest.mark.parametrize("form", ["new", "new/", "new//", "empty", "empty/", "empty/.", "link/../new/"])
def test_any_form_of_a_path_that_a_start_takes(runner: Runner, disk: Path, form: str) -> None:
    make(disk / "source/file")
    (disk / "empty").mkdir()
    (disk / "link").symlink_to("empty")
    texts = {"source": disk / "source", "path": f"{disk}/{form}"}
    told = runner.result(runner.prepare("copy", **texts, plan=1))
    assert ("\ncreates " in told) == ("new" in form)
    assert not (disk / "new").exists()
    runner.run("copy", **texts)
    assert (disk / form / "file").read_bytes() == (disk / "source/file").read_bytes()


@pytest.mark.parametrize(
    ("form", "number"),
    [
        ("link", errno.ENOTDIR),
        ("link/", errno.ENOTDIR),
        ("source/file/", errno.EINVAL),
        ("full/", errno.ENOTEMPTY),
        ("none/new/", errno.ENOENT),
        ("none/.", errno.ENOENT),
        ("/", errno.ENOTEMPTY),
    ],
)
def test_any_form_of_a_path_that_a_start_refuses(runner: Runner, disk: Path, form: str, number: int) -> None:
    """``refused`` compares a start with its plan."""
    make(disk / "source/file")
    make(disk / "full/file")
    (disk / "empty").mkdir()
    (disk / "link").symlink_to("empty")
    path = form if form == "/" else f"{disk}/{form}"
    assert runner.refused("copy", source=disk / "source", path=path).errno == number


@pytest.mark.parametrize("form", ["fixed", "fixed/new"])
def test_a_directory_that_takes_no_file_whatever_its_mode(runner: Runner, disk: Path, form: str, root: None) -> None:
    """A plan has the errno of a start, which is not that of access(2)."""
    make(disk / "source/file")
    with filesystems.disk_image(disk, *filesystems.EXT4) as other:
        (other / "fixed").mkdir()
        subprocess.run(["chattr", "+i", other / "fixed"], check=True)
        try:
            refused = runner.refused("copy", source=disk / "source", path=other / form)
        finally:
            subprocess.run(["chattr", "-i", other / "fixed"], check=True)
    assert refused.errno == errno.EPERM
