"""The state directory: what a daemon leaves to the next one."""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import stat
import subprocess
import sys
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ktaskfs.errors import InvalidValue, KtaskfsError
from ktaskfs.operations.base.registry import find_operations
from ktaskfs.operations.base.resume import Baseline
from ktaskfs.progress import NodeProgress, Phase, Shape, Snapshot, ThreadProgress, ThreadState
from ktaskfs.span import Node
from ktaskfs.tasks.history import ALL_CAPABILITIES, History
from ktaskfs.tasks.private_directory import PrivateDirectory
from ktaskfs.tasks.record import VERSION, Record, record_from_json
from ktaskfs.tasks.state_directory import StateDirectory
from ktaskfs.tasks.task import State
from tests.support.filesystems import tmpfs as mount_tmpfs

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

OPERATIONS = find_operations()
FINAL = Snapshot(
    phase=Phase.FAILED,
    started_ns=5,
    ended_ns=2**63,
    total=100,
    errno=12,
    error_position=-1,
    message="no \u00e9",
    result_size=0,
    undone=False,
    nodes=(NodeProgress(0, 100, -1, 50),),
    threads=(ThreadProgress(0, 7, -1, ThreadState.ENDED, 1, 50, 9, 0, 40, 50),),
)
RECORD = Record(
    task=3,
    name="vm0",
    uid=1,
    gid=2,
    created_ns=1,
    state=State.FAILED,
    history=History(
        operation=OPERATIONS["clear"],
        texts={"path": "/a b\n", "length": "64G", "nice": "3"},
        remaining=(Node(1, 1, -1),),
        base=50,
        baseline=Baseline({"path": (1, 2, 3)}, end=2, size=2, total=51),
        planned=1,
        final=FINAL,
        result=b"text\n",
        rights=0x21,
    ),
    pid=77,
    start_time=88,
    shape=Shape(2, 64),
)


@pytest.fixture
def state(tmp_path: Path) -> Iterator[StateDirectory]:
    directory = StateDirectory(PrivateDirectory(str(tmp_path / "state")))
    yield directory
    directory.close()


def write_raw(state: StateDirectory, name: str, data: bytes) -> None:
    with open(os.path.join(state.path, name), "wb") as file:
        file.write(data)


def as_json(record: Record, **changes: Any) -> bytes:
    return json.dumps(record.to_json() | changes).encode()


def records(state: StateDirectory) -> list[Record]:
    """Every record that can be read."""
    return list(state.records(OPERATIONS))


def test_what_was_written_is_read_back(state: StateDirectory) -> None:
    minimal = Record(12, "x", 0, 0, 5, State.NEW, History())
    state.write(minimal)
    state.write(RECORD)
    assert records(state) == [RECORD, minimal]


def test_a_task_comes_back_from_its_record(state: StateDirectory) -> None:
    task = RECORD.make_task()
    state.write(Record.of(task))
    (read,) = records(state)
    again = read.make_task()
    assert again.history == task.history == RECORD.history
    assert (again.number, again.name, again.uid, again.gid, again.state) == (3, "vm0", 1, 2, "failed")
    assert (again.created_ns, again.worker, read.pid) == (1, None, None)


def test_the_form_on_disk_stays() -> None:
    """Another version of the daemon reads it; only a new VERSION may change it."""
    fields = json.loads(as_json(RECORD))
    assert (VERSION, fields.pop("version")) == (3, 3)
    assert fields.pop("final") == json.loads(json.dumps(asdict(FINAL)))
    assert fields == {
        "task": 3,
        "name": "vm0",
        "uid": 1,
        "gid": 2,
        "operation": "clear",
        "rights": 0x21,
        "parameters": {"path": "/a b\n", "length": "64G", "nice": "3"},
        "state": "failed",
        "created_ns": 1,
        "pid": 77,
        "start_time": 88,
        "remaining": [[1, 2, -1]],
        "base": 50,
        "baseline": {"files": {"path": [1, 2, 3]}, "end": 2, "size": 2, "total": 51},
        "shape": [2, 64],
        "result": "text\n",
    }


def test_a_record_of_version_1_is_read(state: StateDirectory) -> None:
    write_raw(
        state,
        "00000003.json",
        b'{"version": 1, "task": 3, "name": "vm0", "uid": 1, "gid": 2, "operation": "clear", "parameters": {"path": '
        b'"/a b\\n", "length": "64G", "nice": "3"}, "state": "failed", "created_ns": 1, "pid": 77, "start_time": 88, '
        b'"remaining": [[1, 2, -1]], "base": 50, "basis": {"files": {"path": [1, 2, 3]}, "end": 2, "size": 2, "total": '
        b'51}, "shape": [2, 64], "final": {"phase": 3, "started_ns": 5, "ended_ns": 9223372036854775808, "total": 100, '
        b'"errno": 12, "error_position": -1, "message": "no \\u00e9", "result_size": 0, "undone": false, "nodes": '
        b'[{"start": 0, "size": 100, "nid": -1, "position": 50}], "threads": [{"slot": 0, "tid": 7, "nid": -1, '
        b'"state": 5, "chunks": 1, "units": 50, "busy_us": 9, "node": 0, "start": 40, "end": 50}]}, '
        b'"result": "text\\n"}',
    )
    everybodys = replace(RECORD, history=replace(RECORD.history, rights=ALL_CAPABILITIES))
    assert records(state) == [everybodys]


def test_a_record_of_version_2_is_read(state: StateDirectory) -> None:
    fields = json.loads(as_json(RECORD, version=2))
    del fields["rights"]
    write_raw(state, "00000003.json", json.dumps(fields).encode())
    everybodys = replace(RECORD, history=replace(RECORD.history, rights=ALL_CAPABILITIES))
    assert records(state) == [everybodys]


@pytest.mark.parametrize(
    "change",
    [{"operation": "gone"}, {"parameters": {"length": "many"}}, {"parameters": {"rate_max": ""}}, {"state": "odd"}],
)
def test_a_task_that_nobody_understands_any_more(change: dict[str, Any]) -> None:
    with pytest.raises((InvalidValue, ValueError)):
        record_from_json(json.loads(as_json(RECORD, **change)), 3, OPERATIONS)


def test_the_directory_and_its_files_are_the_daemons_alone(state: StateDirectory) -> None:
    state.write(RECORD)
    assert stat.S_IMODE(os.stat(state.path).st_mode) == 0o700
    for entry in os.scandir(state.path):
        assert stat.S_IMODE(entry.stat().st_mode) == 0o600


def test_a_record_is_replaced_whole(state: StateDirectory) -> None:
    state.write(RECORD)
    with open(os.path.join(state.path, "00000003.json"), "rb") as before:
        state.write(replace(RECORD, name="other"))
        assert json.load(before)["name"] == "vm0"
    assert [record.name for record in records(state)] == ["other"]


@pytest.mark.usefixtures("root")
def test_a_full_filesystem_leaves_the_old_record(area: Path) -> None:
    with mount_tmpfs(area / "full", 64 << 10) as full:
        state = StateDirectory(PrivateDirectory(str(full / "state")))
        try:
            state.write(RECORD)
            large = replace(RECORD, history=replace(RECORD.history, result=b"r" * 20_000))
            before = len(os.listdir("/proc/self/fd"))
            room = os.statvfs(full)
            (full / "filler").write_bytes(b"x" * room.f_bsize * room.f_bfree)
            with pytest.raises(OSError, match="No space left"):
                state.write(large)
            assert records(state) == [RECORD]
            assert sorted(os.listdir(state.path)) == ["00000003.json", "lock"]
            assert len(os.listdir("/proc/self/fd")) == before
            os.unlink(full / "filler")
            state.write(large)
        finally:
            state.close()


def test_forgetting_removes_record_and_page_and_is_content_with_neither(state: StateDirectory) -> None:
    state.write(RECORD)
    write_raw(state, "00000003.page", b"")
    state.forget(3)
    state.forget(3)
    state.forget_page(3)
    assert os.listdir(state.path) == ["lock"]


def test_numbers_go_on_after_the_highest_that_any_file_has(state: StateDirectory) -> None:
    assert state.highest_number() == 0
    write_raw(state, "00000007.json.bad", b"")
    write_raw(state, "00000005.page", b"")
    write_raw(state, "junk.page", b"")
    write_raw(state, "\u00b2.page", b"")
    assert state.highest_number() == 7


def test_what_a_dying_daemon_left_half_done_is_swept(state: StateDirectory) -> None:
    state.write(RECORD)
    for name in ("00000003.page", "00000004.page", "00000004.json.new", "note"):
        write_raw(state, name, b"")
    state.sweep_pages()
    assert sorted(os.listdir(state.path)) == ["00000003.json", "00000003.page", "lock", "note"]


BAD: dict[str, bytes] = {
    "empty": b"",
    "garbage": b"\x00\xff\xfe",
    "cut": as_json(RECORD)[:-20],
    "no object": b"[]",
    "null": b"null",
    "deep": b"[" * 100_000,
    "not UTF-8": b'{"version": 1, "name": "\xff"}',
    "other version": as_json(RECORD, version=VERSION + 1),
    "no version": json.dumps({name: value for name, value in RECORD.to_json().items() if name != "version"}).encode(),
    "unknown field": as_json(RECORD, colour="red"),
    "missing field": json.dumps({"version": VERSION, "task": 3}).encode(),
    "another's number": as_json(RECORD, task=4),
    "name": as_json(RECORD, name=5),
    "parameters": as_json(RECORD, parameters=None),
    "parameter": as_json(RECORD, parameters={"path": 1}),
    "pid": as_json(RECORD, pid=-1),
    "pid text": as_json(RECORD, pid="77"),
    "shape": as_json(RECORD, shape=[1]),
    "huge shape": as_json(RECORD, shape=[10**12, 10**12]),
    "remaining": as_json(RECORD, remaining=[[1, 2]]),
    "remaining text": as_json(RECORD, remaining=[["a", "b", "c"]]),
    "final": as_json(RECORD, final={"phase": 1}),
    "final phase": as_json(RECORD, final=asdict(FINAL) | {"phase": 99}),
    "final thread": as_json(RECORD, final=asdict(FINAL) | {"threads": [1]}),
}


@pytest.mark.parametrize("data", BAD.values(), ids=BAD.keys())
def test_a_record_that_cannot_be_used_is_set_aside_and_hurts_no_other(
    state: StateDirectory, data: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    write_raw(state, "00000003.json", data)
    sound = [replace(RECORD, task=number, name=f"t{number}") for number in (2, 4)]
    for each in sound:
        state.write(each)
    with caplog.at_level(logging.WARNING):
        assert [record.name for record in records(state)] == ["t2", "t4"]
    assert "setting aside the record" in caplog.text
    assert "00000003.json" in caplog.text
    with open(os.path.join(state.path, "00000003.json.bad"), "rb") as file:
        assert file.read() == data
    caplog.clear()
    assert len(records(state)) == 2
    assert caplog.text == ""


def test_a_directory_in_a_records_place_is_set_aside(state: StateDirectory) -> None:
    os.mkdir(os.path.join(state.path, "00000003.json"))
    assert records(state) == []
    assert os.path.isdir(os.path.join(state.path, "00000003.json.bad"))


@settings(deadline=None)
@given(st.data())
def test_a_record_with_any_field_changed_is_read_or_set_aside(data: st.DataObject) -> None:
    anything = st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
        max_leaves=4,
    )
    field = data.draw(st.sampled_from(sorted(RECORD.to_json())))
    raw = as_json(RECORD, **{field: data.draw(anything)})
    path = f"/dev/shm/ktask-state-{os.getpid()}"
    state = StateDirectory(PrivateDirectory(path))
    try:
        write_raw(state, "00000003.json", raw)
        for record in records(state):
            task = record.make_task()
            assert Record.of(task).name == record.name
            task.rate_limit()
    finally:
        for entry in os.listdir(path):
            os.unlink(os.path.join(path, entry))
        os.rmdir(path)
        state.close()


HOLDER = """
import sys
from ktaskfs.tasks.private_directory import PrivateDirectory
from ktaskfs.tasks.state_directory import StateDirectory
state = StateDirectory(PrivateDirectory(sys.argv[1]))
print("held", flush=True)
sys.stdin.read()
"""


def test_two_daemons_never_share_a_directory(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLDER, str(tmp_path / "state")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        before = len(os.listdir("/proc/self/fd"))
        with pytest.raises(KtaskfsError, match=f"another ktaskfs is using the state directory {tmp_path}") as refusal:
            StateDirectory(PrivateDirectory(str(tmp_path / "state")))
        assert refusal.value.errno == errno.EBUSY
        assert len(os.listdir("/proc/self/fd")) == before
        holder.communicate()
    StateDirectory(PrivateDirectory(str(tmp_path / "state"))).close()


def test_the_lock_ends_with_close_and_is_not_inherited(tmp_path: Path) -> None:
    state = StateDirectory(PrivateDirectory(str(tmp_path)))
    with open(tmp_path / "lock") as other:
        with pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_SH | fcntl.LOCK_NB)
        state.close()
        fcntl.flock(other, fcntl.LOCK_SH | fcntl.LOCK_NB)


def test_a_directory_that_others_may_write_is_refused(tmp_path: Path) -> None:
    def refusal() -> KtaskfsError:
        with pytest.raises(KtaskfsError, match="nobody else may write") as caught:
            StateDirectory(PrivateDirectory(str(tmp_path)))
        assert os.listdir(tmp_path) == []
        return caught.value

    for mode in (0o775, 0o757, 0o1777):
        tmp_path.chmod(mode)
        assert refusal().errname == "EPERM"
    if os.geteuid() == 0:
        tmp_path.chmod(0o700)
        os.chown(tmp_path, 65534, 65534)
        assert refusal().errname == "EPERM"
        os.chown(tmp_path, 0, 0)


def test_a_directory_that_cannot_be_made_says_why(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(KtaskfsError, match="Not a directory") as refusal:
        StateDirectory(PrivateDirectory(str(tmp_path / "file" / "state")))
    assert refusal.value.errname == "ENOTDIR"
