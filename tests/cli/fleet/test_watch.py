"""``ktaskfs run --hosts``: how it starts, watches and leaves hosts, and what it reports about them."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.cli.fleet.conftest import SPEC, Hosts
from tests.support.daemon import ROOT
from tests.support.poll import DEADLINE, until
from tests.support.shell import run
from tests.support.terminal import CONTROL_C, Terminal

if TYPE_CHECKING:
    from pathlib import Path

NO_ROOM = "refused (1): full1: ENOSPC: no room on full1"


def begun(hosts: Hosts) -> int:
    return sum(what == "begin" for what, _ in hosts.events())


def started(words: list[str]) -> subprocess.Popen[str]:
    pipe = subprocess.PIPE
    return subprocess.Popen(words, cwd=ROOT, stdout=pipe, stderr=pipe, text=True)


def test_a_summary_by_state_and_words(hosts: Hosts) -> None:
    outcome = hosts("good[1-3],banner1,full[1-2],failed1,dead[1-2],lost1,bare1,odd1")
    assert outcome.status == 1
    summary = outcome.err.splitlines()[-7:]
    assert summary[0] == "done (4): banner1,good[1-3]"
    assert set(summary[1:]) == {
        "refused (2): full[1-2]: ENOSPC: no room on %h",
        "unreachable (2): dead[1-2]: ssh: connect to host %h port 22: No route to host",
        "failed (1): failed1: ENOSPC: no room",
        "failed (1): bare1: bash: line 1: ktaskfs: command not found",
        "lost (1): lost1: Timeout, server lost1 not responding.",
        "failed (1): odd1: null",
    }
    assert "full1: refused: ENOSPC: no room on full1" in outcome.err
    assert outcome.out == "==> good[1-3] <==\ndigest\n"


@pytest.mark.parametrize(("names", "status"), [("good[1-2]", 0), ("good1,full1", 1), ("dead1", 1), ("lost1,good1", 1)])
def test_the_exit_status(hosts: Hosts, names: str, status: int) -> None:
    assert hosts(names, "--quiet").status == status


def test_as_many_tasks_as_names_are_awaited(hosts: Hosts) -> None:
    """The simulated hosts report only one."""
    for spec, state in (("clear path=/x name=a\nclear path=/x name=a", "done"), (f"{SPEC}\n{SPEC} node=1", "lost")):
        assert hosts("good1", spec=spec).err.splitlines()[-1].startswith(f"{state} (1): good1")


def test_quiet_tells_results_and_what_went_wrong(hosts: Hosts) -> None:
    outcome = hosts("good1,full1", "--quiet")
    assert (outcome.out, outcome.err) == ("==> good1 <==\ndigest\n", f"{NO_ROOM}\n")


def test_json_has_the_objects_of_all_hosts_and_a_summary(hosts: Hosts) -> None:
    outcome = hosts("good1,dead1,full1", "--json")
    found = [json.loads(line) for line in outcome.out.splitlines()]
    assert [each["state"] for each in found if each["host"] == "good1"] == ["running", "done"]
    assert [each for each in found if each["host"] == "dead1"] == [
        {
            "host": "dead1",
            "name": None,
            "state": "unreachable",
            "error": "ssh: connect to host dead1 port 22: No route to host",
        }
    ]
    assert [each["errno"] for each in found if each["host"] == "full1"] == [28]
    assert found[-1]["host"] is None
    assert [(each["state"], each["count"], each["hosts"]) for each in found[-1]["summary"]] == [
        ("done", 1, "good1"),
        ("unreachable", 1, "dead1"),
        ("refused", 1, "full1"),
    ]


def test_the_specification_comes_as_it_was_written(hosts: Hosts) -> None:
    """It gets a name, the same each time, so that the same command finds the task again."""
    spec = "fill path='/a b/100%h %%' pattern=\"it's\" $HOME"
    assert hosts("good1", spec=spec).status == 0
    options = ["--detach", "--plan", "-m", "/other place", "--if-exists=join"]
    assert hosts("good1", *options, spec="free path=/x name=mine").status == 0
    first, second = [shlex.split(line) for line in hosts.log() if line.startswith("begin")]
    assert first[2:-1] == ["ktaskfs", "run", "--json", "--if-exists=rerun"]
    *words, name = shlex.split(first[-1])
    assert words == shlex.split(spec)
    assert name.startswith("name=fill-")
    assert second[3:] == [
        *("run", "--json", "-m", "/other place", "--if-exists=join", "--detach", "--plan"),
        "free path=/x name=mine",
    ]


@pytest.mark.parametrize(("batch", "size"), [("2", 2), ("40%", 2), ("1%", 1), ("100%", 5)])
def test_a_batch_begins_when_the_last_one_is_done(hosts: Hosts, batch: str, size: int) -> None:
    assert hosts("quick[1-5]", "--batch", batch).status == 0
    names = [f"quick{number}" for number in range(1, 6)]
    events = hosts.events()
    for at in range(0, 5, size):
        batch_events, events = events[: 2 * size], events[2 * size :]
        assert {host for _, host in batch_events} == set(names[at : at + size])


def test_no_more_than_the_fanout_at_a_time(hosts: Hosts) -> None:
    assert hosts("quick[1-7]", "--fanout", "3").status == 0
    at_work, most = 0, 0
    for what, _ in hosts.events():
        at_work += 1 if what == "begin" else -1
        most = max(most, at_work)
    assert (most, at_work) == (3, 0)


def test_too_many_failures_end_the_beginning(hosts: Hosts) -> None:
    words = ("failed[1-4],good[1-2]", "--batch", "3", "--max-failed", "2")
    outcome = hosts.until_said("skipped (3): failed4,good[1-2]", *words)
    assert outcome.status == 1
    assert begun(hosts) == 3


def test_few_descriptors_are_enough(hosts: Hosts) -> None:
    words = hosts.words("quick[1-40]")
    outcome = subprocess.run(
        ["bash", "-c", 'ulimit -n 100; exec "$@"', "-", *words], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (outcome.returncode, outcome.stderr.splitlines()[-1]) == (0, "done (40): quick[1-40]")


def test_the_timeout_ends_the_watching_only(hosts: Hosts) -> None:
    outcome = hosts.until_said("timeout (1): slow1: not done after 1 s", "slow1,good1", "--timeout", "1")
    assert outcome.status == 1
    assert "the same command follows them again" in outcome.err
    assert "slow1 cancel" not in hosts.log()


def test_a_host_without_a_daemon_is_named_at_the_timeout(hosts: Hosts) -> None:
    away = "timeout (1): away1: not done after 3 s: its daemon does not answer\n"
    outcome = hosts.until_said(away, "away1,slow1", "--timeout", "3")
    assert "timeout (1): slow1: not done after 3 s\n" in outcome.err


def test_control_c_cancels_everywhere(hosts: Hosts) -> None:
    """A terminal sends ^C to all processes of the command. It must not reach the connections."""
    with Terminal(*hosts.words("slow[1-3]", "--fanout", "2"), columns=100) as terminal:
        terminal.sees("slow1 ", "slow2 ", "running")
        terminal.type(CONTROL_C)
        assert terminal.end() == 130
        assert "cancelling on all hosts" in terminal.text
        assert "cancelled (2): slow[1-2]" in terminal.text
        assert "skipped (1): slow3" in terminal.text
    assert {"slow1 cancel", "slow2 cancel"} <= set(hosts.log())


def test_a_host_that_reads_no_more(hosts: Hosts) -> None:
    """A write to such a host does not end the command."""
    with started(hosts.words("mute1,slow1")) as command:
        until(lambda: begun(hosts) == 2, "both have begun")
        command.send_signal(signal.SIGINT)
        _, err = command.communicate(timeout=DEADLINE)
    assert command.returncode == 130
    assert {"done (1): mute1", "cancelled (1): slow1"} <= set(err.splitlines())


def test_a_host_whose_daemon_is_away_is_told_again(hosts: Hosts) -> None:
    with started(hosts.words("back1")) as command:
        until(lambda: begun(hosts) == 1, "it has begun")
        command.send_signal(signal.SIGINT)
        _, err = command.communicate(timeout=DEADLINE)
    assert (command.returncode, err.splitlines()[-1]) == (130, "cancelled (1): back1")


@pytest.mark.parametrize("option", ["--quiet", "--json"])
def test_a_line_without_an_end_is_not_kept(hosts: Hosts, option: str) -> None:
    """The command gives the host up. The host's task may go on."""
    words = hosts.words("endless1,good1,noisy1", option)
    outcome = run("bash", "-c", 'ulimit -v 262144; exec "$@"', "-", *words, cwd=ROOT)
    assert outcome.status == 1, outcome
    if option == "--json":
        summary = json.loads(outcome.out.splitlines()[-1])["summary"]
        found = {(each["state"], each["hosts"], each["error"]) for each in summary}
        words_of_it = "a line of more than 8 MiB"
        assert found == {("done", "good1", None), ("lost", "endless1", words_of_it), ("failed", "noisy1", words_of_it)}
    else:
        assert sorted(outcome.err.splitlines()) == [
            "failed (1): noisy1: a line of more than 8 MiB",
            "lost (1): endless1: a line of more than 8 MiB",
        ]


def test_a_host_that_closes_its_output_and_does_not_end_holds_nobody_up(hosts: Hosts) -> None:
    outcome = hosts("good1,quick1,shut1")
    assert outcome.status == 1
    assert {"done (2): good1,quick1", "lost (1): shut1: the connection ended"} <= set(outcome.err.splitlines())


def test_nobody_reads_what_it_prints(hosts: Hosts) -> None:
    with started(hosts.words("good[1-3],slow1", "--json")) as command:
        assert command.stdout is not None
        command.stdout.close()
        assert command.wait(DEADLINE) == -signal.SIGPIPE
        assert command.stderr is not None
        assert command.stderr.read() == ""


@pytest.mark.parametrize("name", ["run", "ls", "doctor"])
def test_a_full_disk_is_told_and_fails(hosts: Hosts, name: str) -> None:
    words = hosts.words("good1") if name == "run" else hosts.words("good1")[:-1]
    words[3] = name
    outcome = run("bash", "-c", 'PYTHONUNBUFFERED= exec "$@" >/dev/full', "-", *words, cwd=ROOT)
    assert (outcome.status, outcome.err.splitlines()[-1]) == (1, "ktaskfs: standard output: No space left on device")


def test_a_doctor_without_a_proper_end_has_found_nobody_well(hosts: Hosts) -> None:
    words = hosts.words("good1,lost1,silent1")[:-1]
    words[3] = "doctor"
    outcome = run(*words, cwd=ROOT)
    assert (outcome.status, outcome.out) == (1, "ok       good1\n")
    assert sorted(outcome.err.splitlines()) == [
        "ktaskfs: failed (1): silent1: the command printed no answer",
        "ktaskfs: lost (1): lost1: Timeout, server lost1 not responding.",
    ]


@pytest.mark.parametrize("name", ["ls", "doctor"])
def test_the_reason_of_a_host_has_its_name_in_json(hosts: Hosts, name: str) -> None:
    """Also if other hosts have the same reason."""
    words = hosts.words("dead[1-2]", "--json")[:-1]
    words[3] = name
    found = [json.loads(line) for line in run(*words, cwd=ROOT).out.splitlines()]
    reasons = {each["host"]: each["error"] for each in found}
    assert reasons == {host: f"ssh: connect to host {host} port 22: No route to host" for host in ("dead1", "dead2")}


def test_a_second_control_c_leaves_the_tasks(hosts: Hosts) -> None:
    with started(hosts.words("deaf1,good1")) as command:
        until(lambda: "end good1" in hosts.log() and begun(hosts) == 2, "both have begun")
        command.send_signal(signal.SIGINT)
        until(lambda: "deaf1 cancel" in hosts.log(), "it is told to cancel")
        command.send_signal(signal.SIGINT)
        _, err = command.communicate(timeout=DEADLINE)
        assert command.returncode == 130
    assert "left (1): deaf1" in err
    assert err.endswith("ktaskfs: the tasks go on; the same command follows them again\n")


def test_a_terminal_shows_the_slowest_first(hosts: Hosts) -> None:
    names = ",".join(f"slow{number:02}" for number in range(10, 90, 5))
    with Terminal(*hosts.words(f"good1,full1,{names}"), rows=12, columns=90) as terminal:
        terminal.sees("16 running", NO_ROOM, "done (1): good1", "more from", "slowest slow10 at 10.0%")
        picture = terminal.text
        terminal.type(CONTROL_C)
        assert terminal.end() == 130
    last = picture[picture.rindex("\rslow10 ") :]
    assert last.index("slow10 ") < last.index("slow15 ") < last.index("slow20 ") < last.index("more from")
    assert "slow85 " not in last


def test_a_table_leaves_the_cursor_on_the_screen(hosts: Hosts) -> None:
    with Terminal(*hosts.words("slow1")) as terminal:
        terminal.sees("slow1 ", "running")
        terminal.type(CONTROL_C)
        assert terminal.end() == 130
        assert "\x1b[?25" not in terminal.raw


@pytest.mark.parametrize("term", ["dumb", "unknown", ""])
def test_plain_lines_where_the_terminal_is_dumb(hosts: Hosts, term: str) -> None:
    with Terminal(*hosts.words("quick1"), env={"TERM": term}) as terminal:
        assert terminal.end() == 0
        assert "\x1b" not in terminal.raw
        assert "done (1): quick1" in terminal.text


def test_what_cannot_be_begun(hosts: Hosts) -> None:
    for options, words in (
        (["--batch", "0"], "--batch: '0' is neither"),
        (["--batch", "101%"], "--batch: '101%' is neither"),
        (["--topology", "/none"], "--topology needs ssh"),
        (["--ssh-options", "-F '"], "--ssh-options: No closing quotation"),
        (["--files"], "--files reads files of this machine"),
    ):
        outcome = hosts("good1", *options)
        assert (outcome.status, words in outcome.err) == (2, True), outcome
    for names in (
        "hv[1",
        "",
        "hv[3-1]",
        "hv1 hv2",
        "hv1\nhv2,hv3",
        "hv\x1b[31m1",
        "good1,-oProxyCommand=x",
        "hv[1-2,5-99999999]",
    ):
        outcome = hosts(names)
        assert (outcome.status, outcome.err.startswith("ktaskfs: --hosts: ")) == (2, True), outcome
    for empty in ("", "[]"):
        outcome = hosts("good1", spec=empty)
        assert (outcome.status, outcome.err) == (2, "ktaskfs: there is no specification\n")
    assert "more than 96 KiB" in hosts("good1", spec=f"free path=/{'x' * 100_000}").err
    assert hosts.log() == []
    assert "is not a valid pattern" in hosts("good1", "--via", "/bin/echo %x %h").err


def test_a_terminal_is_left_alone_by_what_cannot_be_begun() -> None:
    words = [sys.executable, "-m", "ktaskfs.cli.main", "run", "--hosts", "good1", "--topology", "/none", SPEC]
    with Terminal(*words) as terminal:
        assert terminal.end() == 1
        assert terminal.raw.startswith("ktaskfs: --topology: ")


def test_an_option_for_hosts_alone(hosts: Hosts) -> None:
    words = hosts.words("good1", "--fanout", "3")
    del words[4:6]
    outcome = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (outcome.returncode, outcome.stderr) == (2, "ktaskfs: --fanout needs --hosts\n")


def test_without_clustershell(hosts: Hosts, tmp_path: Path) -> None:
    (tmp_path / "ClusterShell").mkdir()
    (tmp_path / "ClusterShell/__init__.py").write_text("raise ModuleNotFoundError('none', name='ClusterShell')\n")
    outcome = hosts("good1", env={"PYTHONPATH": os.fspath(tmp_path)})
    ways = "apt install python3-clustershell, or pipx inject ktaskfs ClusterShell"
    assert (outcome.status, outcome.err) == (1, f"ktaskfs: --hosts needs ClusterShell: {ways}\n")


def test_the_same_command_has_the_same_name(hosts: Hosts) -> None:
    for _ in range(2):
        assert hosts("good1", spec=SPEC).status == 0
    first, second = [line.partition("name=")[2] for line in hosts.log() if line.startswith("begin")]
    assert first == second != ""
