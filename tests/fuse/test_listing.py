"""Open directories are counted against their memory limit."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from ktaskfs.fuse.listing import LISTING_SIZE, LISTINGS_OF_ONE_MAX, NAME_SIZE, Listing, listings_quota
from ktaskfs.quota import Quota
from ktaskfs.vfs import ROOT_INO, Attributes, Caller, StaticDirectory, TooMuchText

if TYPE_CHECKING:
    from ktaskfs.vfs import Inode

ANNE, BERT = Caller(1000, 1000, 1), Caller(1001, 1001, 2)


def directory(count: int) -> StaticDirectory:
    children: dict[str, Inode] = {str(ino): StaticDirectory(ino, Attributes(0o555), {}) for ino in range(2, count + 2)}
    return StaticDirectory(ROOT_INO, Attributes(0o555), children)


def names(listing: Listing, start: int = 0) -> list[str]:
    return [name for _, name, _ in listing.children(start)]


def test_a_listing_counts_its_names_from_the_first_read_until_it_is_closed() -> None:
    quota = Quota("bytes", each=1 << 20, total=1 << 24, refusal=TooMuchText)
    listing = Listing(directory(50), ANNE, quota)
    assert quota.held(ANNE.uid) == LISTING_SIZE
    assert names(listing, 10) == [str(ino) for ino in range(12, 52)]
    assert quota.held(ANNE.uid) == LISTING_SIZE + 50 * NAME_SIZE
    listing.take()
    assert len(names(listing)) == 50
    assert quota.held(ANNE.uid) == LISTING_SIZE + 50 * NAME_SIZE
    listing.close()
    assert quota.held(ANNE.uid) == 0


def test_beyond_the_last_name_is_nothing() -> None:
    listing = Listing(directory(50), ANNE, listings_quota())
    for start in (50, 51, (1 << 63) - 1):
        assert names(listing, start) == []
    assert names(listing, 49) == ["51"]


def test_what_was_removed_meanwhile_is_left_out_and_the_places_of_the_others_stay() -> None:
    listed = directory(6)
    listing = Listing(listed, ANNE, listings_quota())
    listing.take()
    for gone in ("2", "4", "5", "7"):
        del listed.children[gone]
    assert [(index, name) for index, name, _ in listing.children(0)] == [(1, "3"), (4, "6")]
    assert [(index, name) for index, name, _ in listing.children(2)] == [(4, "6")]


def test_a_user_with_too_many_open_directories_is_refused() -> None:
    quota = Quota("bytes", each=2 * LISTING_SIZE + 60 * NAME_SIZE, total=1 << 24, refusal=TooMuchText)
    first, second = Listing(directory(50), ANNE, quota), Listing(directory(50), ANNE, quota)
    first.take()
    with pytest.raises(TooMuchText):
        second.take()
    with pytest.raises(TooMuchText):
        names(second)
    first.take()
    Listing(directory(10), BERT, quota).take()
    first.close()
    assert len(names(second)) == 50
    assert quota.held(ANNE.uid) == LISTING_SIZE + 50 * NAME_SIZE
    quota.take(ANNE.uid, 10 * NAME_SIZE)
    Listing(directory(50), ANNE, quota)
    with pytest.raises(TooMuchText):
        Listing(directory(50), ANNE, quota)


def test_a_small_directory_can_be_listed_while_others_hold_half() -> None:
    """Half of all is for small holdings."""
    quota = listings_quota()
    quota.take(2000, LISTINGS_OF_ONE_MAX)
    with pytest.raises(TooMuchText):
        quota.take(2001, LISTINGS_OF_ONE_MAX)
    quota.take(2001, LISTINGS_OF_ONE_MAX * 3 // 4)
    assert len(names(Listing(directory(3), ANNE, quota))) == 3
