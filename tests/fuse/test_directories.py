"""Listings, names that appear and disappear, and the kernel's cache of them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.fuse.conftest import Example
    from tests.support.users import User

MANY = 10_000


def test_a_listing_has_types_modes_and_links(example: Example) -> None:
    listed = {line.split()[-1]: line.split()[:2] for line in example.run("ls", "-la").out.splitlines()[1:]}
    assert listed["."] == ["drwxr-xr-x", "7"]
    assert listed["dir"] == ["drwxr-xr-x", "2"]
    assert listed["items"] == ["drwxrwxrwt", "1"]
    assert listed["number"] == ["-rw-r--r--", "1"]
    assert ".." in listed


def test_inode_numbers_of_a_listing_are_those_of_stat(example: Example) -> None:
    with os.scandir(example.path) as entries:
        numbers = {entry.name: entry.inode() for entry in entries}
    assert len(set(numbers.values())) == len(numbers)
    assert {name: (example.path / name).stat().st_ino for name in numbers} == numbers


def test_ten_thousand_entries_are_listed_once_each(example: Example) -> None:
    for command in (["ls", "-f"], ["ls", "--color=always"], ["ls", "-l"]):
        outcome = example.run(*command, "many")
        assert (outcome.status, len(outcome.out.splitlines())) == (0, MANY + {"-f": 2, "-l": 1}.get(command[1], 0))
    assert sorted(os.listdir(example.path / "many"), key=int) == [str(number) for number in range(MANY)]


def test_a_listing_goes_on_where_seekdir_says(example: Example) -> None:
    script = """
import ctypes, sys
libc = ctypes.CDLL(None)
libc.opendir.restype = libc.readdir.restype = ctypes.c_void_p
libc.telldir.restype = ctypes.c_long
class Dirent(ctypes.Structure):
    _fields_ = [("ino", ctypes.c_ulong), ("off", ctypes.c_long), ("len", ctypes.c_ushort), ("type", ctypes.c_ubyte),
                ("name", ctypes.c_char * 256)]
directory = ctypes.c_void_p(libc.opendir(b"many"))
def names(count):
    found = []
    while len(found) < count and (entry := libc.readdir(directory)):
        found.append(ctypes.cast(entry, ctypes.POINTER(Dirent)).contents.name)
    return found
first = names(5000)
place = ctypes.c_long(libc.telldir(directory))
rest = names(10**6)
libc.seekdir(directory, place)
assert names(10**6) == rest
libc.rewinddir(directory)
assert names(5000) == first
assert len(set(first + rest)) == len(first + rest) == 10002, len(first + rest)
"""
    outcome = example.run("python3", "-c", script)
    assert (outcome.status, outcome.err) == (0, "")


def test_rewinding_takes_a_new_snapshot(example: Example) -> None:
    fd = os.open(example.path / "items", os.O_RDONLY | os.O_DIRECTORY)
    try:
        assert os.listdir(fd) == []
        os.mkdir(example.path / "items" / "new")
        assert os.listdir(fd) == ["new"]
    finally:
        os.close(fd)


def test_directories_come_and_go(example: Example) -> None:
    items = example.path / "items"
    assert example.run("mkdir", "items/a", "items/busy").status == 0
    assert example.cat("items/a/value") == "a\n"
    assert example.run("mkdir", "items/a").errname == "EEXIST"
    assert example.run("rmdir", "items/busy").errname == "EBUSY"
    assert example.run("mkdir", "items/" + "x" * 256).errname == "ENAMETOOLONG"
    with (items / "a" / "value").open() as value:
        assert example.run("rmdir", "items/a").status == 0
        assert not (items / "a").exists()
        assert value.read() == "a\n"
        assert os.listdir(items) == ["busy"]
        os.mkdir(items / "a")
        assert (items / "a" / "value").stat().st_ino != os.fstat(value.fileno()).st_ino


def test_a_caller_sees_only_what_is_shown_to_him(example: Example, two_users: tuple[User, User]) -> None:
    alice, bob = two_users
    assert example.run("mkdir", "items/hers", user=alice).status == 0
    assert example.cat("items/hers/value", user=alice) == "hers\n"
    assert example.run("ls", "items", user=alice).out == "hers\n"
    # The kernel must not reuse one user's lookup for another user.
    assert example.run("ls", "items", user=bob).out == ""
    assert example.run("cat", "items/hers/value", user=bob).errname == "ENOENT"
    assert example.run("rmdir", "items/hers", user=bob).errname == "ENOENT"
    assert example.run("rmdir", "items/hers", user=alice).status == 0


def test_only_the_owner_removes_in_a_sticky_directory(example: Example, two_users: tuple[User, User]) -> None:
    alice, _ = two_users
    assert example.run("mkdir", "items/hers", user=alice).status == 0
    assert example.run("rmdir", "items/hers").status == 0


def test_what_the_kernel_knows_takes_no_memory_of_the_server(example: Example) -> None:
    blocks = []
    for _ in range(4):
        assert example.shell("ls -lR many > /dev/null").status == 0
        # 2: unused dentries and inodes (Documentation/admin-guide/sysctl/vm.rst)
        Path("/proc/sys/vm/drop_caches").write_text("2")
        blocks.append(example.counts()["blocks"])
    assert blocks[-1] - blocks[1] < MANY, "less than an object for each two names, beyond those of the first listings"
