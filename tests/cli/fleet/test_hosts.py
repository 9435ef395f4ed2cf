"""The states of hosts, derived from their output and from the ends of their connections."""

from __future__ import annotations

import json
import math
import tracemalloc

import pytest

from ktaskfs.cli.fleet.ask import Answers, cells_of
from ktaskfs.cli.fleet.connections import names_of
from ktaskfs.cli.fleet.hosts import KEPT_MOST, TOO_MUCH, Fleet, HostGroup, parsed
from ktaskfs.cli.fleet.reports import FleetJson
from ktaskfs.cli.fleet.summary import status_line
from ktaskfs.errors import InvalidValue


def told(state: str, *, task: str = "vm", percent: object = None, **more: object) -> bytes:
    return json.dumps({"name": task, "state": state, "percent": percent, "stale": False} | more).encode()


@pytest.fixture
def fleet() -> Fleet:
    return Fleet(["hv1", "hv2"])


@pytest.mark.parametrize(
    ("lines", "status", "state", "words"),
    [
        ([], 255, "unreachable", "exit status 255"),
        ([b"hv1: no route"], 255, "unreachable", "%h: no route"),
        ([b"hv11 and my-hv1 are others, hv1 is not"], 255, "unreachable", "hv11 and my-hv1 are others, %h is not"),
        ([b"Host key verification failed.\r"], 255, "unreachable", "Host key verification failed."),
        (
            [b"Host key for hv1 has changed.\r", b"Host key verification failed.\r"],
            255,
            "unreachable",
            "Host key for %h has changed.",
        ),
        ([b"no ktaskfs"], 127, "failed", "no ktaskfs"),
        ([b"\x1b[31mred\xff\r"], 1, "failed", "?[31mred\\xff"),
        ([told("running", percent="high")], 0, "failed", told("running", percent="high").decode()),
        ([told("done", finish_usec=1e999)], 0, "failed", told("done", finish_usec=1e999).decode()),
        ([told("done", total=[1])], 0, "failed", told("done", total=[1]).decode()),
        ([b'{"name": "vm", "state": ' + b"[" * 100000], 1, "failed", '{"name": "vm", "state": ' + "[" * 276),
        (["\x9b31mred".encode()], 1, "failed", "?31mred"),
        ([told("failed", errno=5, error="\x1b[31mred\n")], 1, "failed", "EIO: \\033[31mred\\012"),
        ([told("refused", errno=5, error="\x9b31mred")], 1, "refused", "EIO: \\302\\23331mred"),
        ([b"x" * 5000], 1, "failed", "x" * 300),
        ([told("running")], 255, "lost", "the connection ended"),
        ([b"Welcome", told("running")], 255, "lost", "the connection ended"),
        ([told("running"), b"Timeout, server hv1 not responding."], 255, "lost", "Timeout, server %h not responding."),
        ([told("running")], None, "lost", "the connection ended"),
        ([told("running")], 0, "lost", "the connection ended"),
        ([told("done")], 0, "done", ""),
        ([told("done"), b"logout"], 255, "done", ""),
        ([told("planned")], 0, "planned", ""),
        ([told("cancelled")], 3, "cancelled", ""),
        ([told("failed", errno=5, error="bad on hv1")], 1, "failed", "EIO: bad on %h"),
        ([told("refused", task="", errno=28, error="full")], 1, "refused", "ENOSPC: full"),
        ([told("refused", errno="x", error=None)], 1, "refused", "refused: None"),
        ([told("refused", errno=2, error="gone"), told("done")], 1, "refused", "ENOENT: gone"),
        ([told("done", task="a"), told("cancelled", task="b")], 3, "cancelled", ""),
        ([told("done", task="a"), told("running", task="b")], 255, "lost", "the connection ended"),
        ([b"7", b"[]", b'"done"', b'{"state": "done"}', b'{"name": "vm"}'], 1, "failed", '"done"'),
        ([b'{"name": "vm", "command": "cancel", "errno": 16, "error": "over"}'], 1, "failed", "exit status 1"),
    ],
)
def test_the_end_of_a_host(fleet: Fleet, lines: list[bytes], status: int | None, state: str, words: str) -> None:
    fleet.connecting("hv1")
    for line in lines:
        fleet.heard("hv1", line)
    fleet.ended("hv1", status)
    host = fleet["hv1"]
    assert (host.state, host.words, host.has_ended) == (state, words, True)
    assert fleet.groups() == [HostGroup(state, words, ["hv1"])]
    fleet.ended("hv1", 255)
    assert fleet["hv1"] == host


@pytest.mark.parametrize(
    "names", ["hv[1-2,5-65541]", "hv[1-70000/2]", "a[1-3]b[1-99999]-ib", "a[1-300]b[1-300]", "a[1-60000],b[1-60000]"]
)
def test_a_number_too_many(names: str) -> None:
    with pytest.raises(InvalidValue, match="these are more than 65536 hosts"):
        names_of(names)
    assert names_of("ip-1-99999999,hv[5-7]") == ["hv5", "hv6", "hv7", "ip-1-99999999"]
    assert len(names_of("hv[5-65540]")) == 65536


@pytest.mark.parametrize(("status", "state"), [(0, "started"), (255, "lost")])
def test_a_host_that_need_not_follow_its_task(status: int, state: str) -> None:
    fleet = Fleet(["hv1"], detach=True)
    fleet.heard("hv1", told("running"))
    fleet.ended("hv1", status)
    assert fleet["hv1"].state == state


@pytest.mark.parametrize(("state", "status"), [("done", 255), ("done", 0), ("running", 0)])
def test_a_task_that_a_host_has_not_named_is_not_done(state: str, status: int) -> None:
    """The connection, or the command there, has ended between the lines of two tasks."""
    fleet = Fleet(["hv1"], tasks=2, detach=state == "running")
    fleet.heard("hv1", told(state, task="a"))
    fleet.ended("hv1", status)
    assert (fleet["hv1"].state, fleet.exit_status) == ("lost", 1)


def test_the_status_is_that_of_the_worst(fleet: Fleet) -> None:
    fleet.heard("hv1", told("done"))
    fleet.ended("hv1", 0)
    assert fleet.failed == 0
    for state, status in (("interrupted", 4), ("cancelled", 3), ("failed", 1), ("done", 0)):
        fleet.heard("hv2", told(state))
        fleet.end("hv2", state)
        assert fleet.exit_status == status
    fleet.end("hv2", "skipped")
    assert (fleet.exit_status, fleet.failed) == (1, 1)


def test_the_task_at_work_that_is_least_advanced_counts(fleet: Fleet) -> None:
    for task, state, percent in (
        ("a", "done", 100.0),
        ("b", "running", 70.0),
        ("c", "paused", 20.0),
        ("d", "running", 90.0),
    ):
        fleet.heard("hv1", told(state, task=task, percent=percent))
    standing = fleet["hv1"].standing
    assert (standing.name, standing.state, standing.figures["percent"]) == ("hv1", "paused", 20.0)
    assert fleet.counts() == {"paused": 1, "waiting": 1}


def test_the_line_on_all_hosts_names_those_without_a_daemon(fleet: Fleet) -> None:
    fleet.heard("hv1", told("running", percent=5))
    fleet.heard("hv2", told("running", percent=7))
    assert status_line(fleet) == "2 running; slowest hv1 at 5.0%"
    fleet.heard("hv2", told("running", percent=7, stale=True))
    assert status_line(fleet) == "2 running; slowest hv1 at 5.0%; no daemon on hv2"
    fleet.ended("hv2", 255)
    assert status_line(fleet) == "1 running, 1 lost; slowest hv1 at 5.0%"


def test_equal_results_are_one(fleet: Fleet) -> None:
    for host, result in (("hv1", "same\n"), ("hv2", "same\n")):
        fleet.heard(host, told("done", result=result))
    fleet.heard("hv2", told("done", task="other", result=""))
    assert fleet.results() == {("vm", "same\n"): ["hv1", "hv2"]}
    first, second = (fleet[host].tasks["vm"].result for host in ("hv1", "hv2"))
    assert first is second


@pytest.mark.parametrize("figure", [10**400, -(10**400), math.inf, math.nan, 2**64], ids=range(5))
def test_a_figure_is_a_number_that_a_task_can_have(figure: float) -> None:
    assert parsed(told("running", percent=figure)) is None
    assert parsed(told("running", percent=50.0)) is not None


@pytest.mark.parametrize(
    "line",
    [
        told("running"),
        told("running", host="hv2"),
        b'{"name": "vm", "state": "running", "\\u0068ost": "hv2"}',
        '{"name": "vm", "state": "running", "error": "\x9b31mred"}'.encode(),
    ],
)
def test_an_object_belongs_to_its_host(fleet: Fleet, line: bytes, capsys: pytest.CaptureFixture[str]) -> None:
    fleet.connecting("hv1")
    found = fleet.heard("hv1", line)
    assert found is not None
    FleetJson().heard(fleet["hv1"], found)
    out = capsys.readouterr().out
    assert out.isascii()
    assert out.startswith('{"host": "hv1", "name": ')
    assert json.loads(out)["host"] == "hv1"


def test_an_object_that_can_be_read_but_not_written(fleet: Fleet, capsys: pytest.CaptureFixture[str]) -> None:
    """The limit of recursion is not the same for both."""
    answered = 0
    for depth in range(900, 1000):
        line = b'{"host": "hv2", "name": ' + b"[" * depth + b"]" * depth + b"}"
        if (found := parsed(line)) is not None:
            answered += 1
            FleetJson().heard(fleet["hv1"], found)
    assert len(capsys.readouterr().out.splitlines()) == answered > 0


@pytest.mark.parametrize("many", ["tasks", "results"])
def test_a_host_that_says_too_much_is_not_kept(fleet: Fleet, many: str) -> None:
    tracemalloc.start()
    try:
        for number in range(100):
            result = f"{number}".zfill(1 << 20)
            fleet.heard("hv1", told("running", task="vm" if many == "results" else f"vm{number}", result=result))
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept < 2 * KEPT_MOST
    assert fleet.heard("hv2", told("done"))
    fleet.ended("hv1", 255)
    assert fleet["hv1"].words == (TOO_MUCH if many == "tasks" else "the connection ended")


@pytest.mark.parametrize(("state", "status"), [("done", 1), ("running", 0)])
def test_a_host_that_says_too_much_is_not_fine(fleet: Fleet, state: str, status: int) -> None:
    """Among what was not kept may be a failure."""
    for number in range(100):
        fleet.heard("hv1", told(state, task=f"vm{number}", result="x" * (1 << 20)))
    fleet.heard("hv1", told("done", task="small"))
    fleet.ended("hv1", status)
    assert (fleet["hv1"].state, fleet["hv1"].words) == ("lost", TOO_MUCH)


def test_a_host_whose_answer_is_too_long() -> None:
    answers = Answers(["hv1", "hv2"], 1, may_be_empty=False)
    for _ in range(100):
        answers.said("hv1", told("running", result="x" * (1 << 20)))
    answers.said("hv2", told("done"))
    answers.ended("hv1", 0)
    answers.ended("hv2", 0)
    assert [len(each) for each in answers.objects.values()] == [0, 1]
    assert answers.bad == [HostGroup("failed", TOO_MUCH, ["hv1"])]


@pytest.mark.parametrize("key", ["name", "operation", "state", "units"])
def test_a_row_is_not_as_wide_as_a_host_likes(key: str) -> None:
    """All rows would be."""
    figures = {"name": "vm", "state": "running", "total": 1, "units": "bytes", "operation": "clear"}
    assert all(len(cell) <= 128 for cell in cells_of(figures | {key: "x" * (1 << 20)}))
