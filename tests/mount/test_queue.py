"""plan=1, queue=1 and replace=1 as users meet them, and names that are not UTF-8."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

import pytest

from tests.support.poll import DEADLINE, until
from tests.support.slow import start_slow, stop

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import MountMaker
    from tests.support.daemon import Mount
    from tests.support.users import User

CONTROL = "tasks/control"

pytestmark = pytest.mark.usefixtures("patient")


def test_a_queue_outlives_the_daemon_and_the_writer(
    mount_maker: MountMaker, area: Path, memory: Path, two_users: tuple[User, User]
) -> None:
    """Its tasks run as the writer, in the order in which they came, in each other's place."""
    ann, state = two_users[0], area / "kept"
    first = mount_maker(statedir=state, options="mode=0666,max_tasks=1")
    start_slow(first, memory, "slow", user=ann)
    place = memory / "anns"
    place.mkdir()
    os.chown(place, ann.uid, ann.gid)
    script = f"""
        cd {place}; umask 027
        for name in a b c; do echo "fallocate path=$name length=64K mode=0666 name=$name queue=1" > $1; done
    """
    outcome = first.shell(script, str(first.path / CONTROL), user=ann)
    assert (outcome.status, outcome.err) == (0, "")
    assert first.read("tasks/a/state", user=ann) == "queued\n"
    assert first.write(CONTROL, f"clear path={place}/none", user=ann) == (1, "EAGAIN")
    first.kill()
    second = mount_maker(statedir=state, options="mode=0666,max_tasks=1")
    assert [second.read(f"tasks/{name}/state", user=ann) for name in "abc"] == ["queued\n"] * 3
    assert second.write("tasks/b/control", "cancel", user=ann) == (0, None)
    stop(second, "slow", user=ann)
    for name, end in (("a", "done"), ("b", "cancelled"), ("c", "done")):
        assert second.read(f"tasks/{name}/wait", user=ann).splitlines()[-1] == end
    found = {path.name: (path.stat().st_uid, path.stat().st_mode & 0o777) for path in place.iterdir()}
    assert found == {"a": (ann.uid, 0o640), "c": (ann.uid, 0o640)}
    second.close()


def test_cancel_ends_what_waits_too(mounted: Mount, memory: Path) -> None:
    assert mounted.write("debug/ktask_max_tasks", "1") == (0, None)
    start_slow(mounted, memory, "slow")
    for name in "ab":
        spec = f"fallocate path={memory}/{name} length=64K name={name} queue=1"
        assert mounted.write(CONTROL, spec) == (0, None)
    assert mounted.shell("rmdir tasks/a").errname == "EBUSY"
    assert mounted.write(CONTROL, "cancel") == (0, None)
    for name in ("slow", "a", "b"):
        assert mounted.read(f"tasks/{name}/wait").splitlines()[-1] == "cancelled"
    assert mounted.read("tasks/a/error") == "ECANCELED at 0: cancelled while it was queued\n"
    assert mounted.write("debug/ktask_max_queued", "0") == (0, None)
    start_slow(mounted, memory, "slower")
    assert mounted.write(CONTROL, f"fallocate path={memory}/c length=64K queue=1") == (1, "EAGAIN")
    assert "debug/ktask_max_queued" in mounted.read("info/last_cmd_status")
    stop(mounted, "slower")


def test_a_plan_and_then_the_work_under_the_same_name(mounted: Mount, memory: Path) -> None:
    spec = f"fallocate path={memory}/new length=1M name=t"
    for more in ("plan=1 replace=1", "plan=1"):
        assert mounted.write(CONTROL, f"{spec} {more}") == (0, None)
        assert mounted.read("tasks/t/wait").splitlines()[-1] == "planned"
        assert mounted.read("tasks/t/result").splitlines() == [
            "operation fallocate",
            "total 1048576",
            "units bytes",
            f"creates {memory}/new",
            "extends_to 1048576",
            "allocates 1048576",
        ]
    assert os.listdir(memory) == []
    assert mounted.write("tasks/t/control", "resume") == (1, "EBUSY")
    assert mounted.write("tasks/t/plan", "0") == (1, "EBUSY")
    assert mounted.write(CONTROL, spec) == (0, None)
    assert mounted.read("tasks/t/wait").splitlines()[-1] == "done"
    assert mounted.write(CONTROL, f"{spec} plan=1") == (1, "EEXIST")
    assert mounted.write(CONTROL, f"{spec} plan=1 replace=1") == (0, None)
    plan = mounted.read("info/last_task").strip()
    assert mounted.read(f"tasks/{plan}/wait").splitlines()[-1] == "planned"
    assert mounted.read("tasks/t/state") == "done\n"
    assert mounted.write(CONTROL, f"{spec} plan=1 replace=1 path={memory}/no/file") == (1, "EINVAL")
    bad = f"fallocate path={memory}/no/file length=1M name=t plan=1 replace=1"
    assert mounted.write(CONTROL, bad) == (1, "ENOENT")
    assert mounted.read("tasks/t/state") == "done\n"
    outcome = mounted.shell("mkdir tasks/m && cd tasks/m && echo clear > op && echo $1 > path && echo 1 > plan"
                            " && echo start > control && tail -n 1 wait", f"{memory}/new")  # fmt: skip
    assert (outcome.out, outcome.err) == ("planned\n", "")
    assert mounted.read("tasks/m/result").startswith("operation clear\ntotal 1048576\n")


def test_events_tell_of_a_name_that_is_used_again(mounted: Mount, memory: Path) -> None:
    spec = f"fallocate path={memory}/new length=64K name=t replace=1"
    script = f"""
        exec 3< events
        for i in 1 2; do echo '{spec}' > {CONTROL} && cat tasks/t/wait > /dev/null; done
        rmdir tasks/t
        timeout {DEADLINE:g} sed '/ t .* - /q' <&3 | cut -d ' ' -f 2-4
    """
    lines = [line for line in mounted.shell(script).out.splitlines() if line]
    life = ["t - new", "t new starting", "t starting running", "t running done"]
    assert lines == [*life, *life, "t done -"]


def test_events_end_with_the_state_of_a_task_whose_replacement_failed(mounted: Mount, memory: Path) -> None:
    assert mounted.write(CONTROL, f"fallocate path={memory}/new length=64K name=t") == (0, None)
    assert mounted.read("tasks/t/wait").splitlines()[-1] == "done"
    script = f"""
        exec 3< events
        echo 'clear path={memory}/no-such name=t replace=1' > {CONTROL}
        rmdir tasks/t
        timeout {DEADLINE:g} sed '/ t done - /q' <&3 | cut -d ' ' -f 2-4
    """
    lines = [line for line in mounted.shell(script).out.splitlines() if line]
    assert lines == ["t - new", "t new starting", "t starting -", "t - done", "t done -"]


def test_a_path_that_is_not_utf8(mounted: Mount, memory: Path) -> None:
    name = b"caf\xe9 \xff"
    target = os.fsencode(memory) + b"/" + name
    assert mounted.write_once(CONTROL, b"fallocate length=64K name=w path='%s'\n" % target) == (0, None)
    as_json = {"op": "fallocate", "length": "128Ki", "name": "j", "path": os.fsdecode(target)}
    assert mounted.write_once(CONTROL, json.dumps(as_json, indent=2) + "\n") == (0, None)
    raw = json.dumps(as_json | {"name": "r", "length": "192KiB"}, ensure_ascii=False).encode(errors="surrogateescape")
    assert mounted.write_once(CONTROL, b"[\n" + raw + b"\n]\n") == (0, None)
    for task in ("w", "j", "r"):
        assert mounted.read(f"tasks/{task}/wait").splitlines()[-1] == "done"
        assert (mounted.path / f"tasks/{task}/path").read_bytes() == target + b"\n"
        assert rf"Path:{chr(9)}{memory}/caf\351 \377" in mounted.read(f"tasks/{task}/status")
    assert os.listdir(os.fsencode(memory)) == [name]
    assert os.stat(target).st_size == 192 << 10
    gone = target + b"/x"
    assert mounted.write_once(CONTROL, b"clear bad path='%s'\n" % gone) == (1, "EINVAL")
    assert mounted.write_once(CONTROL, b"clear path='%s'\n" % gone) == (1, "ENOTDIR")
    shown = rf"{memory}/caf\351 \377/x"
    assert mounted.read("info/last_cmd_status") == f"tasks/control: ENOTDIR: open {shown}: Not a directory\n"
    log = mounted.read("info/error_log").splitlines()
    assert log[1] == f"  Command: clear bad path='{shown}'"
    assert log[2] == " " * len("  Command: clear ") + "^^^"


def test_the_record_keeps_a_path_that_is_not_utf8(mount_maker: MountMaker, area: Path, memory: Path) -> None:
    target = os.fsencode(memory) + b"/caf\xe9"
    first = mount_maker(statedir=area / "kept")
    spec = b"fallocate length=64M chunk=4K rate_max=64K name=t path=%s\n" % target
    assert first.write_once(CONTROL, spec) == (0, None)
    first.kill()
    second = mount_maker(statedir=area / "kept")
    assert (second.path / "tasks/t/path").read_bytes() == target + b"\n"
    until(lambda: os.path.exists(target), "the worker goes on")
    stop(second, "t")
    second.close()
