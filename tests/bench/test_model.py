"""The arithmetic of the scaling model: what must hold whatever the machine."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.harness import Section, Series
from bench.model.fit import (
    GIB,
    HUGE_PAGE,
    LARGEST_CHUNK,
    Costs,
    Server,
    Shape,
    gil_threads,
    gil_throughput,
    memory_threads,
    predict,
    soft_minimum,
    speedup,
    usable_threads,
)
from bench.model.measure import OPERATIONS, MainJob, main_job, server_like
from bench.model.page import wrapped
from bench.model.published import CLOUD_ALL, CLOUD_CAPPED, SERIES, THREADS, Published, fit_all, fit_one, fit_through
from bench.model.tables import short
from tests.support.daemon import ROOT

TIB = 1 << 40
KNEE = 3.0
SERVER = Server(cores=64, nodes=1, core_bandwidth=10.0 * GIB, node_bandwidth=150.0 * GIB)
BOUNDLESS = replace(SERVER, node_bandwidth=1e9 * GIB)
FREE = Costs(chunk_gil=0, gil_handoff=0, page_lock=0, page_unmap=0, thread_start=0, task=0)
COSTS = Costs(chunk_gil=6e-6, gil_handoff=8e-6, page_lock=4e-7, page_unmap=5e-7, thread_start=2e-5, task=0.01)


@given(st.lists(st.floats(1e-3, 1e9), min_size=1, max_size=4), st.floats(1, 12))
def test_soft_minimum_lies_below_every_limit(limits: list[float], knee: float) -> None:
    found = soft_minimum(limits, knee)
    assert 0 < found <= min(limits) * (1 + 1e-9)
    assert found >= min(limits) / len(limits) * (1 - 1e-9)


def test_a_sharp_knee_is_the_minimum() -> None:
    assert soft_minimum([3.0, 7.0], 60) == pytest.approx(3.0)


@given(st.integers(1, 300), st.floats(1e-4, 0.1), st.floats(1e-7, 1e-3), st.floats(0, 1e-4))
def test_gil_throughput_keeps_both_bounds(threads: int, think: float, service: float, handoff: float) -> None:
    rate, share = gil_throughput(threads, think, service, handoff)
    assert 0 < rate <= min(threads / (think + service), 1 / service) * (1 + 1e-9)
    assert 0 < share <= 1


def test_gil_throughput_of_one_thread_is_exact() -> None:
    assert gil_throughput(1, 0.003, 0.001)[0] == pytest.approx(250)


def test_gil_that_is_always_held_hands_over_for_each_chunk() -> None:
    rate, share = gil_throughput(1000, 0.001, 1e-5, 1e-5)
    assert share == pytest.approx(1, abs=0.01)
    assert rate == pytest.approx(1 / 2e-5, rel=0.01)


def test_without_costs_or_limits_threads_divide_the_time() -> None:
    one = predict(BOUNDLESS, FREE, Shape(size=TIB, threads=1), KNEE)
    assert one.seconds == pytest.approx(TIB / BOUNDLESS.core_bandwidth, rel=1e-3)
    assert speedup(BOUNDLESS, FREE, Shape(size=TIB, threads=32), KNEE) == pytest.approx(32, rel=1e-2)


def test_memory_bounds_the_time() -> None:
    found = predict(SERVER, COSTS, Shape(size=TIB, threads=64), KNEE)
    assert found.work_seconds >= TIB / SERVER.memory
    assert found.limit == "memory"
    assert found.seconds > found.work_seconds


@pytest.mark.parametrize(
    ("server", "costs", "threads", "limit"),
    [
        (SERVER, COSTS, 4, "cores"),
        (SERVER, COSTS, 64, "memory"),
        (BOUNDLESS, replace(COSTS, page_lock=0, chunk_gil=1e-3), 64, "GIL"),
        (BOUNDLESS, replace(COSTS, page_lock=1e-4), 64, "kernel locks"),
    ],
)
def test_the_limit_is_named(server: Server, costs: Costs, threads: int, limit: str) -> None:
    assert predict(server, costs, Shape(size=TIB, threads=threads), KNEE).limit == limit


@given(st.sampled_from([1, 4, 16]), st.integers(1, 205), st.sampled_from([16, 64, 256]))
def test_more_work_takes_longer_and_small_chunks_hold_the_gil_longer(tib: int, threads: int, mib: int) -> None:
    shape = Shape(size=tib * TIB, threads=threads, chunk=mib << 20)
    found = predict(SERVER, COSTS, shape, KNEE)
    assert predict(SERVER, COSTS, replace(shape, size=2 * shape.size), KNEE).seconds > found.seconds
    assert 0 < found.gil_share <= 1
    finer = replace(shape, chunk=shape.chunk // 8, least_chunk=HUGE_PAGE)
    assert predict(SERVER, COSTS, finer, KNEE).gil_share >= found.gil_share


def test_workers_divide_the_gil_and_the_end() -> None:
    shape = Shape(size=16 * TIB, threads=64)
    one, four = (predict(SERVER, COSTS, replace(shape, workers=workers), KNEE) for workers in (1, 4))
    assert four.gil_share < one.gil_share
    assert four.seconds < one.seconds


def test_chunks_follow_the_framework() -> None:
    assert Shape(size=16 * TIB, threads=205).shipped_chunk == LARGEST_CHUNK
    assert Shape(size=1 << 30, threads=8).shipped_chunk == 32 << 20


def test_threads_and_where_they_stop() -> None:
    assert usable_threads(8, TIB) == 7
    assert usable_threads(256, TIB) == 205
    assert usable_threads(256, 32 << 20) == 2
    assert memory_threads(SERVER) == pytest.approx(15)
    assert gil_threads(10.0, 10, 0.25) == pytest.approx(5)


def test_a_series_made_by_the_model_is_found_again() -> None:
    rates = [soft_minimum([2.0 * count, 20.0], KNEE) * GIB for count in THREADS]
    made = Published("clear", "made", 100, tuple(100 * GIB / rate for rate in rates))
    fit = fit_one(made, KNEE)
    assert fit.error < 0.01
    assert fit.thread == pytest.approx(2 * GIB, rel=0.02)
    assert fit.most == pytest.approx(10, rel=0.03)


def test_published_figures_are_those_of_the_series() -> None:
    """The speedups that the messages print beside their times."""
    printed = {
        ("clear", 800): (2.54, 4.98, 10.15, 12.99),
        ("fallocate", 200): (3.09, 5.72, 9.45, 9.74),
        ("fallocate", 400): (2.14, 3.84, 5.11, 6.12),
    }
    for each in SERIES:
        assert len(each.seconds) == len(THREADS)
        wanted = printed.get((each.operation, each.gib))
        assert wanted is None or each.speedups[1:] == pytest.approx(wanted, abs=0.01)


def test_the_fit_of_the_series_is_no_worse_than_its_page_says() -> None:
    _, fits = fit_all()
    assert max(fit.error for fit in fits) < 0.2


def test_server_like_gives_back_what_it_was_made_from() -> None:
    job = MainJob(work=4 * GIB, ktaskfs=0.2, alone=0.4, both=0.25)
    server = server_like(job, KNEE)
    assert soft_minimum([2 * server.core_bandwidth, server.memory], KNEE) == pytest.approx(16 * GIB)
    unlimited = server_like(replace(job, both=0.1), KNEE)
    assert unlimited.node_bandwidth > 0


def test_the_main_job_that_was_measured_is_understood() -> None:
    """The names of the series are those of bench.main_job."""
    data = json.loads((ROOT / "bench/results/main_job.json").read_text())
    sections = [
        Section(part["title"], [Series(each["name"], each["values"]) for each in part["series"]], work=part["work"])
        for part in data["sections"]
    ]
    jobs, task = main_job(sections)
    assert set(jobs) == set(OPERATIONS)
    assert task > 0
    assert all(0 < job.both <= job.alone for job in jobs.values())


@given(st.floats(1, 10), st.floats(100, 500), st.integers(8, 64), st.integers(100, 300))
def test_two_figures_are_fitted_exactly(thread: float, together: float, few: int, more: int) -> None:
    def rate(threads: int) -> float:
        return soft_minimum([threads * thread, together], KNEE)

    found = fit_through((few, rate(few)), (more, rate(more)), KNEE)
    assert found == pytest.approx((thread, together), rel=1e-3)


@pytest.mark.parametrize("threads", [32, 64])
def test_cloud_hypervisors_figures_fit_the_model(threads: int) -> None:
    """At the knee of the series: a real solution, whose threads are slower than perfect ones."""
    thread, together = fit_through((threads, CLOUD_CAPPED), CLOUD_ALL, fit_all()[0])
    assert CLOUD_CAPPED / threads <= thread < CLOUD_CAPPED / threads * 1.1
    assert CLOUD_ALL[1] <= together < CLOUD_ALL[1] * 1.1


@pytest.mark.parametrize(("seconds", "text"), [(3.14, "3.1 s"), (119.0, "119 s"), (180.0, "3.0 min")])
def test_short(seconds: float, text: str) -> None:
    assert short(seconds) == text


def test_wrapped_leaves_tables_alone() -> None:
    row = "| " + " | ".join(["cell"] * 40) + " |"
    text = wrapped(f"# Heading\n\n- one {'word ' * 40}\n- two\n\n{row}")
    assert row in text
    assert max(len(line) for line in text.splitlines() if not line.startswith("|")) <= 120
    assert text.count("\n- ") == 2
    assert re.search(r"^  word", text, re.MULTILINE)


def test_the_page_belongs_to_its_data() -> None:
    """The page in docs/ and the data beside it are of one run."""
    data = json.loads((ROOT / "bench/results/model.json").read_text())
    page = (ROOT / "docs/explanation/scaling.md").read_text()
    assert data["command"] in page
    assert Path(ROOT / "docs/plots/scaling.svg").is_file()
