"""The simulation's own arithmetic, and that it runs; what it measures is nobody's condition."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("joblib", reason="bench/simulate.py measures joblib beside ktask")
from bench import simulate, thread_cases, thread_peers, virtual_time
from bench.thread_search import Case, Memory, Simulation


def test_costs_have_the_mean_they_claim() -> None:
    for workload in virtual_time.WORKLOADS:
        seconds = virtual_time.costs(workload, 20_000)
        assert sum(seconds) / len(seconds) == pytest.approx(virtual_time.CHUNK, rel=0.02)
        assert seconds == virtual_time.costs(workload, 20_000)


def test_ideal_is_no_less_than_the_longest_chunk() -> None:
    assert virtual_time.ideal([1.0, 1.0, 1.0, 1.0], 2) == 2
    assert virtual_time.ideal([1.0, 5.0], 2) == 5


@pytest.mark.parametrize("workload", virtual_time.WORKLOADS)
@pytest.mark.parametrize("threads", [1, 3, 16])
def test_no_schedule_beats_the_ideal(workload: str, threads: int) -> None:
    assert virtual_time.in_order(workload, threads) <= 1 + 1e-9
    best = virtual_time.ideal(virtual_time.costs(workload, 64 * threads), threads)
    for fixed in (True, False):
        assert virtual_time.model_makespan(workload, 64 * threads, threads, fixed=fixed) >= best - 1e-9


def test_shrinking_chunks_end_more_evenly_than_fixed_ones() -> None:
    for threads in (4, 16, 64, 256):
        fixed, shrinking = (
            virtual_time.model_makespan("skewed", 256 * threads, threads, fixed=fixed) for fixed in (True, False)
        )
        assert shrinking < fixed


def test_every_peer_does_the_same_work_in_the_smoke_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    done: dict[str, list[float]] = {}
    measured = ""

    def doze(seconds: float) -> None:
        done.setdefault(measured, []).append(seconds)

    monkeypatch.setattr(thread_peers, "doze", doze)
    for measured in thread_peers.PEERS:
        thread_peers.RUNNERS[measured]("uniform", 40, 4)
    assert [sorted(done[peer]) for peer in thread_peers.PEERS] == [sorted(virtual_time.costs("uniform", 40))] * 3
    simulate.main(["--smoke"])
    page = capsys.readouterr().out
    for workload in virtual_time.WORKLOADS:
        assert f"| {workload} | 4 |" in page


def test_it_runs_as_a_file_wherever_it_is_called(tmp_path: Path) -> None:
    """Isolated, so that neither the environment nor the directory helps it to find its siblings."""
    command = [sys.executable, "-I", str(Path(simulate.__file__).resolve()), "--help"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, "--smoke" in done.stdout) == (0, True), done.stderr


def test_the_search_is_judged_with_and_without_noise_on_one_to_256_cpus() -> None:
    cases = {(case.name, case.cpus) for case in thread_cases.cases()}
    for threads in (3, 12, 18, 64):
        for cpus in (1, 2, 4, 8, 16, 32, 64, 128, 256):
            name = f"{threads} threads' bandwidth"
            assert {(name, cpus), (f"{name}, noise", cpus)} <= cases
    for nodes in ("two nodes", "two nodes, uneven", "four nodes", "four nodes, uneven"):
        for cpus in (4, 16, 64, 128, 256):
            assert {(nodes, cpus), (f"{nodes}, noise", cpus)} <= cases
    for change in ("bandwidth halves", "another task comes", "another task goes", "others come and go"):
        assert {(change, 32), (f"{change}, noise", 32)} <= cases


def test_each_of_four_nodes_begins_with_the_arithmetics_number() -> None:
    """A task that ends before anything is tried has 16 threads, where the CPUs allow them."""
    for cpus, threads in ((64, 16), (16, 16), (4, 4)):
        case = Case("four nodes", cpus, (Memory(12),) * 4, 4 * threads)
        assert Simulation(case, None).run().last == threads


def test_a_case_of_the_page() -> None:
    case = Case("three, noise", 4, (Memory(3),), 400, 0.2)
    (row,) = thread_cases.judge([case])
    assert row.best == 3
    assert len(row.speeds) == len(row.threads) == thread_cases.NOISES
    assert min(row.speeds) <= row.speed <= max(row.speeds)
    assert max(row.threads) <= 4
    text = thread_cases.page([row])
    assert f"| {' | '.join(row.cells)} |" in text
    assert "Rows that miss one: none." in text


def test_rows_that_miss_a_goal_are_named() -> None:
    case = Case("slow", 8, (Memory(3),), 400)
    slow = thread_cases.Row(case, 4, (0.94,), (4.0,), 4)
    many = thread_cases.Row(Case("many", 8, (Memory(3),), 400), 4, (1.0,), (5.5,), 4)
    good = thread_cases.Row(case, 4, (0.95,), (5.0,), 4)
    text = thread_cases.misses([slow, many, good])
    assert "Rows that miss one: slow on 8 CPUs; many on 8 CPUs." in text
    assert "Of the 3 single runs 2 miss one; the lowest speed of all is 0.940." in text
    assert "Rows that miss one: none." in thread_cases.misses([good])
