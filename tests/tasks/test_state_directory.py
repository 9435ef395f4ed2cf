"""The state directory: its files, its lock, and who may have one."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from ktaskfs.errors import KtaskfsError
from ktaskfs.tasks.private_directory import PrivateDirectory
from ktaskfs.tasks.state_directory import StateDirectory
from tests.support.filesystems import tmpfs as mount_tmpfs
from tests.tasks.records import RECORD, records, write_raw


def test_the_directory_and_its_files_are_the_daemons_alone(state: StateDirectory) -> None:
    state.write(RECORD)
    assert stat.S_IMODE(os.stat(state.path).st_mode) == 0o700
    for entry in os.scandir(state.path):
        assert stat.S_IMODE(entry.stat().st_mode) == 0o600


def test_a_record_is_replaced_whole(state: StateDirectory) -> None:
    state.write(RECORD)
    with open(os.path.join(state.path, "00000003.json"), "rb") as before:
        state.write(RECORD._replace(origin=RECORD.origin._replace(name="other")))
        assert json.load(before)["name"] == "vm0"
    assert [record.origin.name for record in records(state)] == ["other"]


@pytest.mark.usefixtures("root")
def test_a_full_filesystem_leaves_the_old_record(area: Path) -> None:
    with mount_tmpfs(area / "full", 64 << 10) as full:
        state = StateDirectory(PrivateDirectory(str(full / "state")))
        try:
            state.write(RECORD)
            large = RECORD._replace(history=RECORD.history._replace(result=b"r" * 20_000))
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


@pytest.mark.usefixtures("root")
def test_a_full_filesystem_keeps_no_daemon_from_starting(area: Path) -> None:
    with mount_tmpfs(area / "full", 64 << 10) as full:
        room = os.statvfs(full)
        (full / "filler").write_bytes(b"x" * room.f_bsize * room.f_bfree)
        state = StateDirectory(PrivateDirectory(str(full / "state")))
        try:
            state.begin_boot()
            assert (full / "state/lock").read_bytes() == b"", "as of a daemon that knows no boots"
            os.unlink(full / "filler")
            state.begin_boot()
            assert (full / "state/lock").read_bytes() == Path("/proc/sys/kernel/random/boot_id").read_bytes()
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


def test_a_directory_in_a_records_place_is_set_aside(state: StateDirectory) -> None:
    os.mkdir(os.path.join(state.path, "00000003.json"))
    assert records(state) == []
    assert os.path.isdir(os.path.join(state.path, "00000003.json.bad"))


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
        with pytest.raises(KtaskfsError, match="nobody else may be able to write") as caught:
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


def test_what_a_session_leaves_to_the_next(state: StateDirectory) -> None:
    assert state.session() == ""
    state.remember_session("first\n")
    state.remember_session("second\n")
    assert state.session() == "second\n"


@pytest.mark.parametrize("other", [None, "00000001.json", "somebody's"])
def test_a_directory_without_a_task_is_removed(state: StateDirectory, other: str | None) -> None:
    """Not if it has files that are neither records nor the daemon's; a daemon waiting for the lock does not get it."""
    state.remember_session("text")
    os.close(os.open(os.path.join(state.path, "log"), os.O_CREAT))
    if other is not None:
        os.close(os.open(os.path.join(state.path, other), os.O_CREAT))
    late = PrivateDirectory(state.path)
    lock = late.open("lock", os.O_RDWR)
    state.remove_unused()
    assert os.path.exists(state.path) == (other is not None)
    assert (os.fstat(lock).st_nlink == 0) == (other is None)
    os.close(lock)
    late.close()


def test_a_directory_that_somebody_has_removed_is_not_missed(state: StateDirectory) -> None:
    """systemd-logind removes that of a user who logs out, while the user's daemon may go on."""
    shutil.rmtree(state.path)
    state.remove_unused()
    assert not os.path.exists(state.path)
