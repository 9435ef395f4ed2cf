"""Each program reads the whole text of a file of the mount, by any system call."""

from __future__ import annotations

import mmap
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from tests.clients.readers import text_readers
from tests.support.shell import run, shell

if TYPE_CHECKING:
    from tests.clients.newest import Utilities
    from tests.conftest import MountMaker
    from tests.fuse.conftest import Example
    from tests.support.daemon import Mount
    from tests.support.users import User

STREAMS: Final = {"events", "wait"}
OTHERS: Final = {"holders", "holders.json"}
"""Files whose lines come and go with what others do on the machine."""
MOVING: Final = (
    *("metrics", "metrics.openmetrics", "info/hugepages", "info/nodes"),
    *(f"{name}{form}" for name in ("info/tasks", "users/0/task_list") for form in ("", ".json")),
)
"""Files that show what others do on the machine, or the time, of which only the numbers may differ."""
ALL: Final = 'for file in "${@:2}"; do printf "\\0%s\\0" "$file"; read_one "$file" "$1"; done'
"""Prints each file, from $2 on, after its name."""


def texts(mount: Mount) -> list[str]:
    found = [Path(top, name) for top, _, names in os.walk(mount.path) for name in names if name not in STREAMS | OTHERS]
    return sorted(str(path.relative_to(mount.path)) for path in found)


def numberless(text: str) -> str:
    return re.sub(r"[0-9][0-9.e+-]*| +", "#", text)


@pytest.fixture
def full(mounted: Mount, memory: Path) -> Mount:
    """A mount with a task that has a result, and a refused command."""
    (memory / "f").write_bytes(b"x" * 8192)
    mounted.shell(f"echo 'checksum path={memory}/f name=ended algorithm=crc32' > tasks/control; cat tasks/ended/wait")
    mounted.shell("echo nonsense > tasks/control")
    return mounted


def test_every_program_reads_every_file(full: Mount, newest: Utilities, area: Path) -> None:
    files = texts(full)
    assert {"users/0/tasks/ended/status", "info/nodes", "users/0/error_log", "metrics"} <= {*files}
    expected = {name: full.read(name) for name in files}
    assert sum(map(bool, expected.values())) > len(files) / 2
    for program, command in text_readers(newest).items():
        script = f"read_one() {{ {command}; }}; {ALL}"
        outcome = run("bash", "-c", script, "bash", str(area / "copy"), *files, cwd=full.path)
        parts = outcome.out.split("\0")[1:]
        read = dict(zip(parts[::2], parts[1::2], strict=True))
        for name in MOVING:
            assert numberless(read.pop(name)) == numberless(expected[name]), (program, name)
        wanted = {name: text for name, text in expected.items() if name not in MOVING}
        different = {name: (read.get(name), text) for name, text in wanted.items() if read.get(name) != text}
        assert (different, outcome.status) == ({}, 0), f"{program}: {outcome.err}"


@pytest.mark.parametrize("size", [0, 1, 4095, 4096, 4097, 70_000])
def test_every_program_reads_a_text_of_any_size(example: Example, newest: Utilities, area: Path, size: int) -> None:
    sized = example.path / "sized"
    for number, (program, command) in enumerate(text_readers(newest).items()):
        # Each text differs from the last: nothing that the kernel has kept of that may come again.
        fill = "abcdefgh"[number % 8] * 79 + "\n"
        text = (fill * (size // 80 + 1))[: size - 1] + "\n" if size else ""
        sized.write_text(f"text {len(text)} {fill[0]}")
        outcome = shell(command, str(sized), str(area / "copy"))
        assert (outcome.status, outcome.err) == (0, ""), program
        assert outcome.out == text, f"{program}: {len(outcome.out)} of {size}"
        assert sized.stat().st_size == size


def test_what_stat_says_moves_with_the_text_only(full: Mount) -> None:
    state = full.path / "users/0/tasks/ended/state"
    first, second = state.stat(), state.stat()
    assert (first.st_size, first.st_mtime_ns, first.st_ctime_ns) == (5, second.st_mtime_ns, second.st_ctime_ns)
    log = full.path / "users/0/error_log"
    before = log.stat()
    full.shell("echo more nonsense > tasks/control")
    after = log.stat()
    assert after.st_size == len(log.read_bytes()) > before.st_size
    assert (after.st_mtime_ns > before.st_mtime_ns, after.st_ctime_ns) == (True, before.st_ctime_ns)


def test_a_copy_of_the_whole_mount(full: Mount, area: Path) -> None:
    """The next rsync copies changed files, even with the same sizes; streams are excluded.

    rsync compares nanoseconds only with an option.
    """
    command = f"rsync --archive --modify-window=-1 --exclude=events --exclude=wait ./ {area}/copy/"
    assert full.shell(command) == full.shell("true")
    for name in texts(full):
        if name not in MOVING:
            assert (area / "copy" / name).read_text() == full.read(name), name
    full.shell("echo 3 > debug/ktask_max_threads")
    assert full.shell(command) == full.shell("true")
    assert (area / "copy/debug/ktask_max_threads").read_text() == "3\n"
    outcome = full.shell(f"mkdir {area}/packed && tar -c . | tar -x -C {area}/packed")
    assert (outcome.status, outcome.err) == (0, "")
    for name in texts(full):
        if name not in MOVING:
            assert (area / "packed" / name).read_text() == full.read(name), name


def test_the_size_is_no_secret_of_others(full: Mount, two_users: tuple[User, User]) -> None:
    user, _ = two_users
    assert full.shell("stat -c %s users/0/tasks/ended/state", user=user).status == 1
    listed = full.shell("stat -c %s tasks/ended/state tasks/ended/result tasks/ended/path version", user=user)
    assert listed.out == f"4096\n4096\n4096\n{len(full.read('version'))}\n"


def test_nobody_gets_what_the_kernel_has_kept_of_another(mount_maker: MountMaker, two_users: tuple[User, User]) -> None:
    """A descriptor that was open before another user's splice(2) reads on with its own user's text."""
    full = mount_maker("mode=0666")
    script = """
import os, sys
fds = {name: os.open(f"info/{name}", os.O_RDONLY) for name in ("last_cmd_status", "last_task", "error_log")}
print("open", flush=True)
sys.stdin.readline()
for name, fd in fds.items():
    with open(f"{sys.argv[1]}/{name}", "wb") as target:
        os.sendfile(target.fileno(), fd, None, 1 << 16)
"""
    user, other = two_users
    place = user.home / "seen"
    place.mkdir()
    os.chown(place, user.uid, user.gid)
    full.shell("echo secret > tasks/control", user=other)
    shown = full.shell(
        'coproc sealed { setpriv --reuid="$1" --regid="$1" --clear-groups /usr/bin/python3 -c "$2" "$3"; }; '
        'read -r -u "${sealed[0]}"; '
        "for file in last_cmd_status last_task error_log; do "
        'setpriv --reuid="$4" --regid="$4" --clear-groups busybox cat info/$file; done; '
        'echo >&"${sealed[1]}"; wait',
        *(str(user.uid), script, str(place), str(other.uid)),
    )
    assert "secret" in shown.out, shown.err
    assert [(place / name).read_text() for name in ("last_cmd_status", "last_task", "error_log")] == ["ok\n", "", ""]


def test_a_mapping_is_refused(full: Mount) -> None:
    with open(full.path / "version", "rb") as file, pytest.raises(OSError, match="No such device"):
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
