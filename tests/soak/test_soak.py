"""The long runs for a few seconds each; and tests that they notice errors."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.soak.actor import BROKEN_MAX, uses
from tests.soak.client import MARK, Transitions, mark
from tests.soak.ground import ground
from tests.soak.kills import Kills
from tests.soak.samples import Sample, is_flat, samples_table
from tests.soak.scenarios import Player
from tests.support.daemon import ROOT
from tests.support.poll import DEADLINE
from tests.support.shell import Outcome, run

if TYPE_CHECKING:
    from tests.support.daemon import Mount


def soak(*arguments: str) -> Outcome:
    return run(sys.executable, "-m", "tests.soak", "--seed", "1", *arguments, cwd=ROOT, timeout=4 * DEADLINE)


def check(outcome: Outcome) -> str:
    """The report of a run in which nothing was broken, and that has left nothing."""
    assert outcome.status == 0, outcome.out + outcome.err
    first, _, report = outcome.out.partition("\n")
    seed, number, _, area = first.split()
    assert (seed, number) == ("seed", "1")
    assert not Path(area).exists()
    assert area not in Path("/proc/self/mounts").read_text()
    assert run("pgrep", "-f", area).out == ""
    assert report.endswith("Nothing was broken.\n")
    return report


def test_everything_at_once() -> None:
    """A longer run does what there was no time for, because a process stalled."""
    rows = ("| fallocate | ", "| fill | ", "| spawner ", "| resumed | ", "| private | ")
    for minutes in ("0.15", "0.6"):
        report = check(soak("--minutes", minutes, "--pace", "20"))
        missing = [row for row in rows if row not in report]
        if not missing:
            break
    assert missing == []


@pytest.mark.usefixtures("patient")
def test_the_daemon_is_killed_at_random() -> None:
    """A start that is answered while its worker stalls could be lost with the daemon."""
    report = check(soak("--minutes", "0.1", "--kill-daemon", "--adoptions", "1"))
    assert "lost: nothing" in report
    assert "| adopted at work | " in report


@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize("what", ["lost", "unreadable"])
def test_what_is_lost_between_two_daemons_is_noticed(what: str) -> None:
    def meanwhile(state: Path) -> None:
        for record in state.glob("*.json"):
            if what == "lost":
                record.unlink()
            else:
                record.write_text("{")

    with ground() as there:
        kills = Kills(there, 60, 1, meanwhile=meanwhile)
        report = kills.run()
    assert len(kills.broken) == 1
    assert "see below" in report


class Careless(Player):
    """Spoils a byte of each file that was just filled."""

    def run(self, spec: str, state: str = "done") -> str:
        result = super().run(spec, state)
        if spec.startswith("fill"):
            mark(next(self.directory.iterdir()), 0)
        return result


# With huge pages the last one of a file may reach beyond its end, and the actors count pages.
@pytest.mark.parametrize("tmpfs", ["huge=never"], indirect=True)
def test_wrong_data_is_noticed(mounted: Mount, tmpfs: Path) -> None:
    (tmpfs / "tmpfs" / "root").mkdir(parents=True)
    (tmpfs / "door").write_text("")
    actor = Careless(mounted.path, tmpfs, "root", 0, 1)
    with pytest.raises(AssertionError):
        actor.fill_and_verify()
    Player(mounted.path, tmpfs, "root", 1, 1).fill_and_verify()


def test_a_scenario_that_does_not_what_it_says_is_noticed(
    mounted: Mount, tmpfs: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmpfs / "tmpfs" / "root").mkdir(parents=True)
    actor = Player(mounted.path, tmpfs, "root", 0, 1)

    @uses("ranges/fill", "ranges/clear")
    def only_fills() -> None:
        actor.run(f"fill path={tmpfs / 'tmpfs' / 'root' / 'file'}")

    (tmpfs / "tmpfs" / "root" / "file").write_bytes(bytes(4096))
    monkeypatch.setattr(actor, "scenarios", lambda: [only_fills])
    actor.work(DEADLINE, 1000)
    assert actor.broken == BROKEN_MAX
    assert "only_fills has not started {'clear'}" in capfd.readouterr().err


def test_changes_of_state_that_may_not_be() -> None:
    transitions = Transitions()
    transitions.hear("1.0 t - new op=clear uid=0\n\n1.1 t new starting op=clear uid=0\n")
    with pytest.raises(AssertionError, match="may not"):
        transitions.hear("1.2 t starting paused op=clear uid=0\n")
    with pytest.raises(AssertionError, match="before"):
        transitions.hear("1.2 t running done op=clear uid=0\n")
    assert transitions.seen == 2


def test_what_grows_is_not_flat() -> None:
    assert is_flat("rss", [40000.0] * 100)
    assert is_flat("rss", [30000.0] * 10 + [40000.0 + (number % 7) * 100 for number in range(90)])
    assert not is_flat("rss", [40000.0 + 100 * number for number in range(100)])
    assert not is_flat("descriptors", [16.0 + number // 10 for number in range(100)])
    sample = Sample(4e4, 3e4, 2e4, 16, 2, 1, 0, 10, 0, 1)
    lines = samples_table([replace(sample, threads=2 + number) for number in range(100)]).splitlines()
    assert [line.endswith("NO |") for line in lines[2:]] == [line.startswith("| threads") for line in lines[2:]]


def test_the_mark_is_in_no_pattern(area: Path) -> None:
    actor = Player(area, area, "root", 0, 7)
    assert not any(MARK in bytes.fromhex(actor.pattern()) for _ in range(500))
