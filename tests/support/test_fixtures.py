"""The fixtures themselves, as far as a fault in them would hide faults elsewhere."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from tests.support import newest
from tests.support.daemon import ROOT, interpreter
from tests.support.filesystems import public_view
from tests.support.hugepages import alone, queue_for
from tests.support.leftovers import none_left
from tests.support.poll import until
from tests.support.shell import run, shell

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from tests.support.users import User

SKIPS = """
import pytest
def test_in_body():
    pytest.skip("reason one")
@pytest.mark.skip(reason="reason two")
def test_by_mark(): ...
@pytest.fixture
def broken():
    pytest.skip("reason three")
def test_in_fixture(broken): ...
@pytest.mark.xfail(reason="known")
def test_expected_failure():
    assert False
"""

LONG = """
import pathlib, time
import pytest
@pytest.fixture(scope="session")
def thing():
    yield
    pathlib.Path(__file__).with_suffix(".put-back").touch()
def test_long(thing):
    pathlib.Path(__file__).with_suffix(".begun").touch()
    time.sleep(600)
"""


@pytest.mark.parametrize("require_all", ["1", ""])
def test_a_skip_fails_where_everything_must_run(tmp_path: Path, require_all: str) -> None:
    (tmp_path / "test_body.py").write_text(SKIPS)
    (tmp_path / "test_module.py").write_text("import pytest\npytest.skip('reason four', allow_module_level=True)\n")
    command = [sys.executable, "-m", "pytest", "-p", "tests.conftest", "-p", "no:cacheprovider", "-rs"]
    done = subprocess.run(
        [*command, "-c", os.devnull, "--rootdir", str(tmp_path), "--continue-on-collection-errors", str(tmp_path)],
        cwd=ROOT,
        env=dict(os.environ, KTASKFS_REQUIRE_ALL=require_all),
        capture_output=True,
        text=True,
        check=False,
    )
    last = done.stdout.strip().splitlines()[-1]
    if require_all:
        assert "1 failed, 1 xfailed, 3 errors" in last  # pytest calls what fails outside the body an error
        assert "skipped" not in last
        assert all(f"reason {number}" in done.stdout for number in ("one", "two", "three", "four"))
    else:
        assert "4 skipped" in last
        assert "1 xfailed" in last
    assert done.returncode == (1 if require_all else 0)


def test_users_are_ordinary(two_users: tuple[User, User]) -> None:
    first, second = two_users
    outcome = run("id", user=first)
    assert outcome.out.strip() == f"uid={first.uid}({first.name}) gid={first.gid}({first.name}) " + (
        f"groups={first.gid}({first.name})"
    )
    assert run("touch", str(first.home / "file"), user=first).status == 0
    refused = run("touch", str(first.home / "file"), user=second)
    assert (refused.status, refused.errname) == (1, "EACCES")


def test_errno_of_a_failed_write() -> None:
    assert shell("echo 5 > /proc/version").errname in ("EACCES", "EIO")
    assert shell("echo nonsense > /proc/self/oom_score_adj").errname == "EINVAL"
    assert run("dd", "of=/dev/full", "status=none", stdin="text").errname == "ENOSPC"


def test_a_detached_process_is_found() -> None:
    with pytest.raises(AssertionError, match="left behind.*sleep"), none_left(deadline=0.1):
        subprocess.run(["sh", "-c", "sleep 600 <&- >/dev/null 2>&1 &"], check=True)


def test_who_waits_for_the_pool_is_before_who_has_just_had_it(tmp_path: Path) -> None:
    had, lock = list[str](), tmp_path / "lock"

    def wait() -> None:
        with alone(lock):
            had.append("the other")

    def is_next() -> bool:
        with queue_for(lock).open("w") as queue:
            try:
                fcntl.flock(queue, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
        return False

    with ThreadPoolExecutor(1) as threads:
        with alone(lock):
            other = threads.submit(wait)
            until(is_next, "the other is next")
        with alone(lock):
            had.append("the first again")
        other.result()
    assert had == ["the other", "the first again"]


def test_hugetlbfs_has_the_page_size(hugetlbfs: Path, page_size: int) -> None:
    assert os.statvfs(hugetlbfs).f_bsize == page_size


def test_tmpfs_is_open_to_all(tmpfs: Path, two_users: tuple[User, User]) -> None:
    assert run("touch", str(tmpfs / "file"), user=two_users[0]).status == 0


def test_an_ordinary_user_can_run_the_project(two_users: tuple[User, User], public_root: Path) -> None:
    script = 'cd "$1" && "$2" -c "import ktaskfs.version"'
    outcome = shell(script, str(public_root), interpreter(public_root), user=two_users[0])
    assert outcome.status == 0, outcome.err


def test_a_public_view_of_a_private_directory(tmp_path: Path, two_users: tuple[User, User]) -> None:
    (tmp_path / "file").write_text("text")
    assert run("cat", str(tmp_path / "file"), user=two_users[0]).errname == "EACCES"
    with public_view(tmp_path) as view:
        assert run("cat", str(view / "file"), user=two_users[0]).out == "text"


@pytest.mark.parametrize("processes", [0, 2])
def test_a_run_told_to_end_puts_everything_back(tmp_path: Path, processes: int) -> None:
    """In each of its processes."""
    files = [tmp_path / f"test_{number}.py" for number in range(max(1, processes))]
    for file in files:
        file.write_text(LONG)
    command = [sys.executable, "-m", "pytest", "-p", "tests.conftest", "-p", "no:cacheprovider", "-c", os.devnull]
    command += ["-n", str(processes), "--dist", "loadfile", *map(str, files)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL) as running:
        until(lambda: len(list(tmp_path.glob("*.begun"))) == len(files), "the tests are at work")
        running.terminate()
    assert running.returncode == pytest.ExitCode.INTERRUPTED
    assert len(list(tmp_path.glob("*.put-back"))) == len(files)


def test_packages_in_the_cache_that_suit_no_longer_are_renewed(
    root: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    versions = iter(("1", "2"))

    def download(place: Path, packages: Sequence[str], release: str) -> None:
        (place / "usr/lib/x-linux-gnu").mkdir(parents=True)
        (place / "usr/lib/x-linux-gnu/ld-linux-x.so.2").touch()
        (place / "version").write_text(f"{packages[0]} {release} {next(versions)}")

    def version(of: newest.Newest) -> str:
        return (of.root / "version").read_text()

    def is_two(of: newest.Newest) -> bool:
        return version(of).endswith("2")

    monkeypatch.setattr(newest, "CACHE", tmp_path)
    monkeypatch.setattr(newest, "_unpack", download)
    assert version(newest.install("some", ["a"])) == "a sid 1"
    for suits, number in ((None, 1), (is_two, 2), (is_two, 2)):
        assert version(newest.install("some", ["a"], suits=suits)) == f"a sid {number}"
    assert [path.name for path in tmp_path.iterdir()] == ["some-sid"]
