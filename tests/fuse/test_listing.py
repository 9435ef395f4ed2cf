"""Open directories are counted against their memory limit."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from ktaskfs.fuse.listing import CHILD_SIZE, LISTING_SIZE, LISTINGS_OF_ONE_MAX, Listing, listings_quota
from ktaskfs.quota import Quota
from ktaskfs.vfs import ROOT_INO, Attributes, Caller, StaticDirectory, TooMuchText

if TYPE_CHECKING:
    from ktaskfs.vfs import Inode

ANNE, BERT = Caller(1000, 1000, 1), Caller(1001, 1001, 2)


def directory(count: int) -> StaticDirectory:
    children: dict[str, Inode] = {str(ino): StaticDirectory(ino, Attributes(0o555), {}) for ino in range(2, count + 2)}
    return StaticDirectory(ROOT_INO, Attributes(0o555), children)


def test_a_listing_counts_what_was_asked_for_until_it_is_closed() -> None:
    quota = Quota("bytes", each=1 << 20, total=1 << 24, refusal=TooMuchText)
    listing = Listing(directory(50), ANNE, quota)
    assert len(listing.children(0, 20)) == 20
    assert [name for name, _ in listing.children(10, 20)] == [str(ino) for ino in range(12, 32)]
    assert quota.held(ANNE.uid) == LISTING_SIZE + 30 * CHILD_SIZE
    listing.take()
    assert quota.held(ANNE.uid) == LISTING_SIZE
    assert len(listing.children(0, 100)) == 50
    listing.close()
    assert quota.held(ANNE.uid) == 0


def test_beyond_what_was_listed_is_nothing_and_nothing_is_made() -> None:
    quota = Quota("bytes", each=1 << 20, total=1 << 24, refusal=TooMuchText)
    listing = Listing(directory(50), ANNE, quota)
    assert len(listing.children(0, 10)) == 10
    for start in (11, 30, (1 << 63) - 1):
        assert listing.children(start, 10) == []
    assert quota.held(ANNE.uid) == LISTING_SIZE + 10 * CHILD_SIZE
    assert len(listing.children(10, 100)) == 40


def test_a_user_with_too_many_open_directories_is_refused() -> None:
    quota = Quota("bytes", each=2 * LISTING_SIZE + 10 * CHILD_SIZE, total=1 << 24, refusal=TooMuchText)
    first, second = Listing(directory(50), ANNE, quota), Listing(directory(50), ANNE, quota)
    first.children(0, 10)
    with pytest.raises(TooMuchText):
        second.children(0, 1)
    with pytest.raises(TooMuchText):
        Listing(directory(50), ANNE, quota)
    assert len(Listing(directory(50), BERT, quota).children(0, 10)) == 10
    first.close()
    assert [name for name, _ in second.children(0, 10)] == [str(ino) for ino in range(2, 12)]
    second.close()
    assert quota.held(ANNE.uid) == 0


def test_a_small_directory_can_be_listed_while_others_hold_half() -> None:
    """Half of all is for small holdings, and what counts is what there is, not what was asked for."""
    quota = listings_quota()
    quota.take(2000, LISTINGS_OF_ONE_MAX)
    with pytest.raises(TooMuchText):
        quota.take(2001, LISTINGS_OF_ONE_MAX)
    quota.take(2001, LISTINGS_OF_ONE_MAX * 3 // 4)
    assert len(Listing(directory(3), ANNE, quota).children(0, 100)) == 3
