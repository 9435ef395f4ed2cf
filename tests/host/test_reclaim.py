"""The kernel's files that make room, written for real."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ktaskfs.host.page_cache import Cached, cached_bytes
from ktaskfs.host.reclaim import open_drop_caches, open_reclaim
from tests.support.forked import run_forked

if TYPE_CHECKING:
    from collections.abc import Callable

    from ktaskfs.host.reclaim import RoomMaker
    from tests.support.users import User

SIZE = 8 << 20
reclaims = pytest.mark.skipif(
    not Path("/sys/devices/system/node/node0/reclaim").exists(), reason="the kernel cannot reclaim on a node"
)


@reclaims
@pytest.mark.usefixtures("root")
def test_a_node_gives_up_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel takes the words, and a size that is more than it has."""
    room = open_reclaim(0)
    assert room is not None
    written: list[bytes] = []
    pwrite = os.pwrite

    def noted(fd: int, text: bytes, offset: int) -> int:
        written.append(text)
        return pwrite(fd, text, offset)

    monkeypatch.setattr(os, "pwrite", noted)
    room.make_room(1 << 20)
    assert written == [b"4194304 swappiness=0"]
    room.close()


@pytest.mark.usefixtures("root")
def test_clean_caches_are_dropped(disk: Path) -> None:
    (disk / "f").write_bytes(bytes(SIZE))
    fd = os.open(disk / "f", os.O_RDONLY)
    os.fsync(fd)
    assert cached_bytes(fd, 0, SIZE, overlay=False) == Cached(SIZE, 0)
    caches = open_drop_caches()
    caches.make_room(1)
    caches.close()
    assert cached_bytes(fd, 0, SIZE, overlay=False) == Cached(0, 0)
    os.close(fd)


@reclaims
@pytest.mark.parametrize("open_room", [lambda: open_reclaim(0), open_drop_caches], ids=["reclaim", "drop_caches"])
def test_a_user_may_not(two_users: tuple[User, User], open_room: Callable[[], RoomMaker]) -> None:
    def try_it() -> str:
        os.setresuid(two_users[0].uid, two_users[0].uid, two_users[0].uid)
        try:
            open_room()
        except OSError as error:
            return type(error).__name__
        return "opened"

    assert run_forked(try_it) == "PermissionError"


def test_a_node_that_is_not_there() -> None:
    assert open_reclaim(4711) is None
