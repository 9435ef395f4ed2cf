"""``info/holders`` and its JSON: who holds huge pages, for root and for each user."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

import pytest

from tests.support import huge_holder
from tests.support.daemon import in_time
from tests.support.holding import holding
from tests.support.hugepages import reserved, smallest_pages
from tests.support.poll import until
from tests.support.shell import run

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import MountMaker
    from tests.support.daemon import Mount
    from tests.support.users import User

HEADER = ["size", "kind", "used", "reserved", "uids", "processes", "path"]
HELD = (
    'coproc "$1" -I "$2" memfd "$3" x; read -u ${COPROC[0]}; pid=$COPROC_PID; '
    'found=$(cat info/holders.json) && echo "$pid" && echo "$found"; kill $pid'
)
"""Bash that prints the pid of a process that holds pages, and who holds some."""
SUMS = ["explained", "pool", "unexplained"]

pytestmark = pytest.mark.usefixtures("patient")


def rows(mount: Mount, user: User | None = None) -> list[list[str]]:
    """The table's rows; only the path, which is last, may have blanks."""
    header, *lines = [line.split(maxsplit=6) for line in mount.read("info/holders", user=user).splitlines()]
    assert header == HEADER
    assert all(len(line) == len(HEADER) for line in lines)
    return lines


def parsed(mount: Mount, user: User | None = None) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(mount.read("info/holders.json", user=user))
    return found


def of(pid: int, found: dict[str, Any]) -> list[dict[str, Any]]:
    return [each for each in found["holdings"] if pid in {process["pid"] for process in each["processes"]}]


@smallest_pages
def test_root_sees_all_and_a_user_the_own(
    mount_maker: MountMaker, hugetlbfs: Path, page_size: int, two_users: tuple[User, User]
) -> None:
    mount = mount_maker("mode=0666")
    ann, ben = two_users
    path = hugetlbfs / "vm of ann"
    with (
        reserved(page_size, 8),
        holding("file", page_size, path, ann) as first,
        holding("memfd", page_size, path, ben) as second,
    ):
        found = parsed(mount)
        (file,), (memfd,) = of(first.pid, found), of(second.pid, found)
        (process,) = file.pop("processes")
        assert process == {"pid": first.pid, "name": process["name"], "uid": ann.uid}
        assert file == {
            "size": page_size,
            "kind": "file",
            "used": 3,
            "reserved": 1,
            "uid": ann.uid,
            "path": str(path),
            "more_processes": 0,
        }
        assert (memfd["kind"], memfd["path"], memfd["uid"]) == ("memfd", "a, guest", ben.uid)
        (pool,) = [each for each in found["pools"] if each["size"] == page_size]
        explained = [each for each in found["holdings"] if each["size"] == page_size]
        for key in ("used", "reserved"):
            assert pool["explained"][key] == sum(each[key] for each in explained)
            assert pool["unexplained"][key] == pool["pool"][key] - pool["explained"][key]
        table = rows(mount)
        size = f"{page_size >> 20}M"
        name = process["name"].replace(" ", "\\040")
        assert [size, "file", "3", "1", str(ann.uid), f"{first.pid}:{name}", str(path)] in table
        assert [row[1] for row in table if row[0] == size][-3:] == SUMS
        mine = parsed(mount, user=ann)
        assert len(of(first.pid, mine)) == 1
        assert of(second.pid, mine) == []
        assert str(second.pid) not in mount.read("info/holders", user=ann)
        path.unlink()


def test_nobody_but_the_user_makes_the_text(mount_maker: MountMaker, two_users: tuple[User, User]) -> None:
    """A file that a user can read must not contain root's view."""
    mount = mount_maker("mode=0666")
    ann, ben = two_users
    file = f"users/{ann.uid}/holders"
    assert mount.cat(file).errname == "EACCES"
    assert mount.read("info/last_cmd_status") == "open: EACCES: only its owner may use this file\n"
    assert mount.cat(file, user=ben).errname == "EACCES"
    assert mount.cat(file, user=ann).out.split()[: len(HEADER)] == HEADER
    assert mount.shell(f"stat -c %s {file}").out == "4096\n"


@smallest_pages
def test_many_who_read_at_once_share_a_look(mounted: Mount, hugetlbfs: Path, page_size: int) -> None:
    with reserved(page_size, 4), holding("memfd", page_size, hugetlbfs) as holder:
        script = (
            'for i in {1..30}; do cat info/holders > /dev/null & pids+=($!); done; wait -f "${pids[@]}" && echo all'
        )
        assert in_time(lambda: mounted.shell(script)).out == "all\n"
        assert of(holder.pid, parsed(mounted))
    until(lambda: not of(holder.pid, parsed(mounted)), "the pages of a process that has ended are not shown")


@smallest_pages
def test_a_user_in_a_user_namespace_sees_what_is_in_there(
    mount_maker: MountMaker, hugetlbfs: Path, page_size: int, two_users: tuple[User, User]
) -> None:
    mount = mount_maker("mode=0666")
    ann, _ = two_users
    with reserved(page_size, 8), holding("memfd", page_size, hugetlbfs, ann) as outside:
        command = ["unshare", "--user", "--map-root-user", "bash", "-c", HELD, "bash", sys.executable]
        outcome = in_time(lambda: run(*command, huge_holder.__file__, str(page_size), user=ann, cwd=mount.path))
        pid, _, text = outcome.out.partition("\n")
        assert json.loads(text)["hung"] == []
        (inside,) = of(int(pid), json.loads(text))
        assert (inside["kind"], inside["used"]) == ("memfd", 2)
        assert [each["uid"] for each in inside["processes"]] == [0]
        assert of(outside.pid, json.loads(text)) == []


@smallest_pages
def test_left_over_files_are_found_and_removed(mounted: Mount, hugetlbfs: Path, page_size: int) -> None:
    """As an administrator would: the how-to."""
    with reserved(page_size, 8):
        for name in ("rtemap_0", "rtemap_1"):
            with holding("file", page_size, hugetlbfs / name):
                pass
        found = parsed(mounted)["holdings"]
        paths = {each["path"] for each in found if each["kind"] == "file" and not each["processes"]}
        assert {str(hugetlbfs / "rtemap_0"), str(hugetlbfs / "rtemap_1")} <= paths
        spec = f"free path='{hugetlbfs}/rtemap_*' unlink=1 name=left"
        assert mounted.write("tasks/control", spec) == (0, None)
        assert mounted.read("tasks/left/wait").endswith("done\n")
        assert list(hugetlbfs.iterdir()) == []
        assert mounted.read("tasks/left/result").startswith("files 2\ngone 0\n")
        assert mounted.write("tasks/left/control", "resume")[1] == "EBUSY"
