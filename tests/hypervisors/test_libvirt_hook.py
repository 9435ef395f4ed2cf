"""The hook of libvirt alone, without libvirt, with pools that only count what is asked of them."""

from __future__ import annotations

import errno
import fcntl
import io
import json
import os
import resource
import runpy
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.daemon import ROOT
from tests.support.poll import until

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

SIZE = 2 << 20


class Pools:
    """The hook with two pools, and the file of a domain."""

    def __init__(self, patch: pytest.MonkeyPatch, directory: Path) -> None:
        self.hook = runpy.run_path(str(ROOT / "packaging/libvirt_hook.py"))
        self.file = directory / "domain"
        self.shares = {0: 3, 1: 4}
        self.free = {0: 100, 1: 100}
        self.refuses: set[int] = set()
        self.full: Callable[[], bool] = lambda: False
        """Is the filesystem of the file full?"""
        pool, names = self.hook["Pool"], self.hook["prepare"].__globals__
        store = names["remember"]

        def grow(each: Any, pages: int, name: str) -> None:
            if each.node in self.refuses:
                raise subprocess.CalledProcessError(1, "ktaskfs")
            self.free[each.node] += pages

        def remember(file: Path, added: Any) -> None:
            if self.full():
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(file))
            store(file, added)

        patch.setattr(pool, "grow", grow)
        patch.setattr(pool, "available", property(lambda each: self.free[each.node]))
        patch.setitem(names, "remember", remember)
        patch.setitem(names, "wants", lambda domain: [None])
        patch.setitem(names, "shares", lambda want, taken: {pool(node, SIZE): n for node, n in self.shares.items()})

    def begin(self) -> None:
        self.hook["prepare"](None, self.file, "domain")

    def end(self) -> None:
        self.hook["release"](self.file, "domain")


@pytest.fixture
def pools(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Pools:
    return Pools(monkeypatch, tmp_path)


def test_an_end_removes_what_the_beginning_added(pools: Pools, tmp_path: Path) -> None:
    (tmp_path / "domain.new").write_text("[[0, 20")  # the hook was killed while it wrote
    pools.begin()
    assert pools.free == {0: 103, 1: 104}
    pools.end()
    assert pools.free == {0: 100, 1: 100}
    assert os.listdir(tmp_path) == []
    pools.end()  # nothing was added for this domain
    assert pools.free == {0: 100, 1: 100}


def test_domains_that_start_at_the_same_time_count_no_page_twice(
    pools: Pools, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """QEMU takes its pages some time after the hook."""
    hook, names = pools.hook, pools.hook["prepare"].__globals__
    monkeypatch.setitem(names, "shares", hook["shares"])
    monkeypatch.setitem(names, "memory_free", lambda node: 1 << 40)
    monkeypatch.setitem(names, "wants", lambda domain: [hook["Want"](SIZE, 150, (0, 1))])
    pools.begin()
    assert pools.free == {0: 100, 1: 100}
    hook["prepare"](None, tmp_path / "other", "other")
    assert sum(pools.free.values()) == 300
    pools.free[0] -= 100  # the first domain takes its pages
    pools.free[1] -= 50
    hook["settle"](pools.file)
    pools.begin()
    assert sum(pools.free.values()) == 300
    pools.end()
    hook["release"](tmp_path / "other", "other")
    assert sum(pools.free.values()) == 50
    assert os.listdir(tmp_path) == []


def test_a_domain_that_has_started_waits_for_no_other(
    pools: Pools, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Another one may be adding pages for minutes, and reads the files meanwhile."""

    def locked(directory: int, operation: int) -> None:
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    names = pools.hook["main"].__globals__
    pools.begin()
    monkeypatch.setattr(fcntl, "flock", locked)
    monkeypatch.setitem(names, "STATE", tmp_path)
    monkeypatch.setattr(sys, "argv", ["qemu", "guest", "started", "begin", "-"])
    monkeypatch.setattr(sys, "stdin", io.StringIO("<domain><uuid>domain</uuid></domain>"))
    assert (names["main"](), os.listdir(tmp_path)) == (0, ["domain"])
    assert names["remembered"](tmp_path / "domain.start") == []


def test_an_end_leaves_the_pages_that_a_starting_domain_has_found(pools: Pools, tmp_path: Path) -> None:
    """QEMU of the first domain ends, the second one starts, and only then the hook hears of the end."""
    pools.begin()
    pools.hook["settle"](pools.file)
    pool = pools.hook["Pool"](0, SIZE)
    pools.hook["remember"](tmp_path / "other.start", [(pool, 101)])
    pools.end()
    assert pools.free == {0: 101, 1: 100}
    pools.hook["settle"](tmp_path / "other")
    pools.free[0] = 50
    pools.end()
    assert pools.free == {0: 49, 1: 100}


@pytest.mark.parametrize("bad", [0, 1])
@pytest.mark.parametrize("begins_again", [True, False])
def test_a_pool_that_refuses_an_end_is_tried_at_the_next_one(
    pools: Pools, tmp_path: Path, bad: int, *, begins_again: bool
) -> None:
    """The other pool is not: its pages would be somebody else's."""
    pools.begin()
    pools.refuses = {bad}
    with pytest.raises(subprocess.CalledProcessError):
        pools.end()
    assert pools.free == {bad: 100 + pools.shares[bad], 1 - bad: 100}
    pools.refuses = set()
    if begins_again:
        pools.begin()
    pools.end()
    assert pools.free == {0: 100, 1: 100}
    assert os.listdir(tmp_path) == []


def test_pages_in_use_at_an_end_are_removed_at_the_next_one(pools: Pools) -> None:
    pools.begin()
    pools.free[0] = 1
    pools.end()
    assert pools.free == {0: 0, 1: 100}
    pools.free[0] = 50
    pools.end()
    pools.end()
    assert pools.free == {0: 48, 1: 100}


@pytest.mark.parametrize("after", [0, 1])
def test_pages_that_cannot_be_noted_are_removed_again(pools: Pools, after: int, tmp_path: Path) -> None:
    written = iter([False] * after)
    pools.full = lambda: next(written, True)
    with pytest.raises(OSError, match="No space left"):
        pools.begin()
    assert pools.free == {0: 100, 1: 100}
    pools.end()
    assert pools.free == {0: 100, 1: 100}
    assert os.listdir(tmp_path) == []


def test_an_end_needs_no_space(pools: Pools, tmp_path: Path) -> None:
    pools.begin()
    pools.full = lambda: True
    pools.end()
    assert pools.free == {0: 100, 1: 100}
    assert os.listdir(tmp_path) == []


def test_pages_that_stay_and_cannot_be_noted_are_named(
    pools: Pools, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pools.begin()
    pools.full = lambda: True
    pools.refuses = {0}
    with pytest.raises(OSError, match="No space left"):
        pools.end()
    assert capsys.readouterr().err == f"ktaskfs: 3 huge pages of {SIZE} bytes stay in the pool of node 0\n"
    pools.full, pools.refuses = lambda: False, set()
    pools.end()
    assert pools.free == {0: 103, 1: 100}
    assert os.listdir(tmp_path) == []


class Killed(BaseException):
    """The hook is killed here."""


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("node", [0, 1])
def test_after_a_kill_no_end_removes_pages_of_somebody_else(
    pools: Pools, monkeypatch: pytest.MonkeyPatch, node: int, *, before: bool
) -> None:
    pools.begin()
    change = pools.hook["Pool"].grow

    def grow(each: Any, pages: int, name: str) -> None:
        if before and each.node == node:
            raise Killed
        change(each, pages, name)
        if each.node == node:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(pools.hook["Pool"], "grow", grow)
        with pytest.raises(Killed):
            pools.end()
    pools.end()
    assert all(free >= 100 for free in pools.free.values())


ALONE = """
import pathlib, runpy, sys
hook = runpy.run_path(sys.argv[1])
hook["main"].__globals__["STATE"] = pathlib.Path(sys.argv[2])
with hook["alone"]():
    hook["Pool"](0, int(sys.argv[3])).grow(0, "domain")
"""
COMMAND = """#!/bin/sh
: >{area}/began
until [ -e {area}/end ]; do sleep 0.02; done
"""


def test_the_command_of_a_killed_hook_keeps_other_domains_waiting(page_size: int, tmp_path: Path) -> None:
    """Its change of the pool is still at work, and another one would be reckoned from half of it."""
    command, locked = tmp_path / "bin/ktaskfs", tmp_path / "state"
    command.parent.mkdir()
    command.write_text(COMMAND.format(area=tmp_path))
    command.chmod(0o755)
    words = [sys.executable, "-c", ALONE, str(ROOT / "packaging/libvirt_hook.py"), str(locked), str(page_size)]
    locked.mkdir()
    directory = os.open(locked, os.O_RDONLY)

    def is_free() -> bool:
        try:
            fcntl.flock(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    try:
        with subprocess.Popen(words, env={"PATH": f"{command.parent}:{os.environ['PATH']}"}) as hook:
            until((tmp_path / "began").exists, "the command is at work")
            hook.kill()
        assert not is_free()
        (tmp_path / "end").touch()
        until(is_free, "the next domain may change the pools")
    finally:
        (tmp_path / "end").touch()
        os.close(directory)


def test_a_note_that_cannot_be_written_leaves_the_last_one(pools: Pools, tmp_path: Path) -> None:
    pools.begin()
    known = pools.hook["remembered"](pools.file)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            pools.hook["remember"](pools.file, [*known, *known])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert pools.hook["remembered"](pools.file) == known
    assert sorted(os.listdir(tmp_path)) == ["domain", "domain.start"]


def test_a_full_filesystem_is_named(pools: Pools, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """write(2) fails without a name of a file."""
    errors = io.StringIO()
    monkeypatch.setitem(pools.hook["main"].__globals__, "STATE", tmp_path)
    monkeypatch.setattr(sys, "argv", ["qemu", "guest", "prepare", "begin", "-"])
    monkeypatch.setattr(sys, "stdin", io.StringIO("<domain><uuid>domain</uuid></domain>"))
    monkeypatch.setattr(sys, "stderr", errors)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5, limits[1]))
    try:
        assert pools.hook["main"]() == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert errors.getvalue() == f"ktaskfs: {pools.file}: File too large\n"
    assert pools.free == {0: 100, 1: 100}


def test_a_release_without_the_command_says_so_and_remembers_the_pages(page_size: int, tmp_path: Path) -> None:
    """The hook alone, as it imports nothing of ktaskfs."""
    hook = runpy.run_path(str(ROOT / "packaging/libvirt_hook.py"))
    file = tmp_path / "domain"
    file.write_text(json.dumps([(0, page_size, 1)]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", str(tmp_path))
        with pytest.raises(FileNotFoundError, match="ktaskfs"):
            hook["release"](file, "domain")
    assert file.exists()
    file.unlink()
    hook["release"](file, "domain")  # nothing was added for this domain
