"""The results of each user's last commands."""

from __future__ import annotations

import time

import pytest

from ktaskfs.control.command_log import BYTES_MAX, KEPT, SHOWN_MAX, USERS_MAX, CommandLog
from ktaskfs.errors import InvalidValue, KtaskfsError, NameTaken, NotPermitted, SpecError, TaskForgotten
from ktaskfs.vfs import Caller


def caller(uid: int) -> Caller:
    return Caller(uid=uid, gid=uid, pid=1)


ME, OTHER = caller(1), caller(2)


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> CommandLog:
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    return CommandLog(now=lambda: 86400.0)


def wrong(line: str, start: int, end: int) -> SpecError:
    return SpecError("no such thing", line=line, start=start, end=end)


def test_who_has_written_nothing_reads_ok(log: CommandLog) -> None:
    assert (log.status(ME), log.errors(ME)) == ("ok\n", "")


def test_a_file_that_cannot_be_read_is_told_unless_its_task_was_removed(log: CommandLog) -> None:
    log.refused_opening(ME.uid, NotPermitted("only its owner may use this file"))
    log.refused_opening(ME.uid, TaskForgotten("the task a was removed"))
    assert log.status(ME) == "open: EPERM: only its owner may use this file\n"


def test_a_refused_write_is_shown_with_a_caret_under_its_token(log: CommandLog) -> None:
    line = "clear path=a colour=red"
    log.refused("tasks/control", ME, "first\n" + line, wrong(line, 13, 23))
    assert log.status(ME) == "tasks/control: EINVAL: no such thing\n"
    assert log.errors(ME) == (
        "[1970-01-02T00:00:00+0000] tasks/control: EINVAL: no such thing\n"
        "  Command: clear path=a colour=red\n"
        "                        ^^^^^^^^^^\n"
    )
    shown, carets = log.errors(ME).splitlines()[1:]
    assert shown[carets.index("^") :][: carets.count("^")] == "colour=red"


def test_a_caret_stays_under_its_token_whatever_stands_before_it(log: CommandLog) -> None:
    line = "clear\tpath=caf\udce9\x1b[31m x=\u00e9\udce9 y=1"
    log.refused("tasks/control", ME, line, wrong(line, line.index("x="), line.index(" y")))
    shown, carets = log.errors(ME).splitlines()[1:]
    assert shown == "  Command: clear\\011path=caf\\351\\033[31m x=\u00e9\\351 y=1"
    assert shown[carets.index("^") :][: carets.count("^")] == "x=\u00e9\\351"


def test_an_error_without_a_place_has_no_caret(log: CommandLog) -> None:
    log.refused("tasks/control", ME, "a\nb", NameTaken("a task a exists"))
    assert log.errors(ME).splitlines()[1:] == ["  Command: a\\012b"]
    assert log.status(ME) == "tasks/control: EEXIST: a task a exists\n"


def test_the_last_eight_are_kept_oldest_first(log: CommandLog) -> None:
    for number in range(KEPT + 3):
        log.refused("f", ME, f"command {number}", InvalidValue("m"))
    commands = [line for line in log.errors(ME).splitlines() if "Command" in line]
    assert commands == [f"  Command: command {number}" for number in range(3, KEPT + 3)]
    assert KEPT == 8


def test_success_is_the_status_and_leaves_the_log(log: CommandLog) -> None:
    log.refused("f", ME, "c", InvalidValue("m"))
    log.succeeded(ME)
    assert log.status(ME) == "ok\n"
    assert "c" in log.errors(ME)
    log.clear(ME)
    assert log.errors(ME) == ""


def test_users_see_only_their_own(log: CommandLog) -> None:
    log.refused("f", ME, "secret", InvalidValue("m"))
    assert (log.status(OTHER), log.errors(OTHER)) == ("ok\n", "")
    log.refused("f", OTHER, "other", InvalidValue("m"))
    log.clear(OTHER)
    assert "secret" in log.errors(ME)


def test_what_is_kept_is_bounded(log: CommandLog) -> None:
    long = "x" * 70_000
    for start, end in ((0, 70_000), (SHOWN_MAX - 1, 70_000), (SHOWN_MAX + 1, SHOWN_MAX + 2)):
        log.refused("f", ME, long, SpecError(long, line=long, start=start, end=end))
    assert len(log.errors(ME)) < 3 * (4 * SHOWN_MAX + 200)
    for uid in range(10, 10 + USERS_MAX):
        log.succeeded(caller(uid))
    assert log.errors(ME) == ""


async def test_a_recorded_write_notes_its_outcome_and_changes_nothing_else(log: CommandLog) -> None:
    async def write(who: Caller, text: str) -> str:
        if text == "bad":
            raise InvalidValue("no")
        return f"{who.uid} {text}"

    recorded, _ = log.keeping("f", write)
    with pytest.raises(KtaskfsError, match="no"):
        await recorded(ME, "bad")
    assert log.status(ME) == "f: EINVAL: no\n"
    assert await recorded(ME, "good") == "1 good"
    assert log.status(ME) == "ok\n"


def test_what_is_kept_is_bounded_and_roots_is_not_forgotten(log: CommandLog) -> None:
    root, text = caller(0), "\N{GRINNING FACE}" * SHOWN_MAX
    log.refused("tasks/control", root, "mine", InvalidValue("no"))
    users = [caller(uid) for uid in range(1, 200)]
    for user in users:
        for _ in range(KEPT):
            log.refused("tasks/control", user, text, InvalidValue("no"))
    kept = [user for user in users if log.errors(user)]
    assert users[-1] in kept
    assert users[0] not in kept
    assert BYTES_MAX // 2 < sum(4 * len(log.errors(user)) for user in kept) <= BYTES_MAX
    assert "mine" in log.errors(root)
    for user in kept:
        log.clear(user)
    for user in users[:10]:
        log.refused("tasks/control", user, text, InvalidValue("no"))
    assert all(log.errors(user) for user in users[:10])
