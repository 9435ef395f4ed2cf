"""A task's record, from which the next daemon continues."""

from __future__ import annotations

import json
import logging
import os
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ktaskfs.errors import InvalidValue
from ktaskfs.tasks.history import ALL_CAPABILITIES, History
from ktaskfs.tasks.private_directory import PrivateDirectory
from ktaskfs.tasks.record import VERSION, Record, record_from_json
from ktaskfs.tasks.state_directory import StateDirectory
from ktaskfs.tasks.task import Origin, State
from tests.tasks.house import OPERATIONS
from tests.tasks.records import RECORD, as_json, records, write_raw

FINAL_FIELDS = {
    "phase": 3,
    "started_ns": 5,
    "ended_ns": 2**63,
    "total": 100,
    "errno": 12,
    "error_position": -1,
    "message": "no \u00e9",
    "result_size": 0,
    "undone": False,
    "nodes": [{"start": 0, "size": 100, "nid": -1, "position": 50}],
    "threads": [
        {
            "slot": 0,
            "tid": 7,
            "nid": -1,
            "state": 5,
            "chunks": 1,
            "units": 50,
            "busy_us": 9,
            "node": 0,
            "start": 40,
            "end": 50,
        }
    ],
    "found": 0,
    "found_nid": -1,
    "found_why": 0,
}
"""The final snapshot of RECORD, as its file has it."""


def test_what_was_written_is_read_back(state: StateDirectory) -> None:
    minimal = Record(Origin(12, "x", 0, 0, 5), State.NEW, History())
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
    assert (VERSION, fields.pop("version")) == (7, 7)
    assert fields == {
        "task": 3,
        "name": "vm0",
        "uid": 1,
        "gid": 2,
        "operation": "clear",
        "rights": 0x21,
        "parameters": {"path": "/a b\n", "length": "64G", "nice": "3"},
        "used": {},
        "state": "failed",
        "created_ns": 1,
        "pid": 77,
        "start_time": 88,
        "caller": None,
        "remaining": [[1, 2, -1]],
        "base": 50,
        "baseline": {"files": {"path": [1, 2, 3]}, "end": 2, "size": 2, "total": 51, "tree": 0},
        "boot": "",
        "shape": [2, 64],
        "final": FINAL_FIELDS,
        "result": "text\n",
    }


def test_defaults_in_use_and_the_boot_are_kept(state: StateDirectory) -> None:
    used = RECORD._replace(history=RECORD.history._replace(used={"algorithm": "crc32"}, boot=state.boot))
    write_raw(state, "00000003.json", as_json(used))
    assert records(state) == [used]


def test_a_record_of_version_6_is_read(state: StateDirectory) -> None:
    fields = json.loads(as_json(RECORD, version=6))
    del fields["boot"]
    write_raw(state, "00000003.json", json.dumps(fields).encode())
    assert records(state) == [RECORD]


def test_a_record_of_version_5_is_read(state: StateDirectory) -> None:
    fields = json.loads(as_json(RECORD, version=5))
    del fields["boot"], fields["used"]
    write_raw(state, "00000003.json", json.dumps(fields).encode())
    assert records(state) == [RECORD]


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
    everybodys = RECORD._replace(history=RECORD.history._replace(rights=ALL_CAPABILITIES))
    assert records(state) == [everybodys]


def test_a_record_of_version_4_is_read(state: StateDirectory) -> None:
    fields = json.loads(as_json(RECORD, version=4))
    del fields["boot"], fields["used"], fields["baseline"]["tree"]
    write_raw(state, "00000003.json", json.dumps(fields).encode())
    assert records(state) == [RECORD]


def test_a_record_of_version_2_is_read(state: StateDirectory) -> None:
    fields = json.loads(as_json(RECORD, version=2))
    del fields["boot"], fields["used"], fields["rights"], fields["baseline"]["tree"]
    write_raw(state, "00000003.json", json.dumps(fields).encode())
    everybodys = RECORD._replace(history=RECORD.history._replace(rights=ALL_CAPABILITIES))
    assert records(state) == [everybodys]


@pytest.mark.parametrize(
    "change",
    [{"operation": "gone"}, {"parameters": {"length": "many"}}, {"parameters": {"rate_max": ""}}, {"state": "odd"}],
)
def test_a_task_that_nobody_understands_any_more(change: dict[str, Any]) -> None:
    with pytest.raises((InvalidValue, ValueError)):
        record_from_json(json.loads(as_json(RECORD, **change)), 3, OPERATIONS)


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
    "final phase": as_json(RECORD, final=FINAL_FIELDS | {"phase": 99}),
    "final thread": as_json(RECORD, final=FINAL_FIELDS | {"threads": [1]}),
}


@pytest.mark.parametrize("data", BAD.values(), ids=BAD.keys())
def test_a_record_that_cannot_be_used_is_set_aside_and_hurts_no_other(
    state: StateDirectory, data: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    write_raw(state, "00000003.json", data)
    sound = [RECORD._replace(origin=Origin(number, f"t{number}", 1, 2, created_ns=1)) for number in (2, 4)]
    for each in sound:
        state.write(each)
    with caplog.at_level(logging.WARNING):
        assert [record.origin.name for record in records(state)] == ["t2", "t4"]
    assert "setting aside the record" in caplog.text
    assert "00000003.json" in caplog.text
    with open(os.path.join(state.path, "00000003.json.bad"), "rb") as file:
        assert file.read() == data
    caplog.clear()
    assert len(records(state)) == 2
    assert caplog.text == ""


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
            assert Record.of(task).origin == record.origin
            task.rate_limit()
    finally:
        for entry in os.listdir(path):
            os.unlink(os.path.join(path, entry))
        os.rmdir(path)
        state.close()
