"""How threads are dealt out to tasks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hypothesis import given
from hypothesis import strategies as st

from ktaskfs.tasks.thread_sharing import Claim, deal_threads, helper_limit
from tests.support.traced import lines_of

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Mapping

ALL = frozenset(range(256))


def deal(wanted: Mapping[Any, int], helpers: int, user_of: Callable[[Any], Hashable]) -> dict[Any, int]:
    """Threads for tasks that may use as many CPUs as give so many helpers."""
    cpus = frozenset(range(helpers))
    return deal_threads({task: Claim(user_of(task), threads, cpus) for task, threads in wanted.items()}, cpus, 100)


WANTED = st.dictionaries(st.integers(), st.integers(1, 300), max_size=40)


@given(st.integers(1, 4096), st.integers(1, 100))
def test_helpers_never_take_more_than_their_share_of_the_cpus(cpus: int, percent: int) -> None:
    helpers = helper_limit(cpus, percent)
    assert helpers * 100 <= cpus * percent < (helpers + 1) * 100


@given(WANTED, st.integers(0, 5000))
def test_the_share_is_dealt_out_evenly_and_wholly(wanted: dict[int, int], helpers: int) -> None:
    granted = deal(wanted, helpers, lambda task: "me")
    assert list(granted) == list(wanted)
    assert all(1 <= granted[task] <= wanted[task] for task in wanted)
    used = sum(granted.values()) - len(wanted)
    assert used == min(helpers, sum(wanted.values()) - len(wanted))
    hungry = [task for task in wanted if granted[task] < wanted[task]]
    # A task that still wants helpers has at most one fewer than any other: the one that could not be split.
    for task in hungry:
        assert all(granted[other] <= granted[task] + 1 for other in wanted)


@given(WANTED, st.integers(0, 5000))
def test_ties_go_to_the_earlier_task(wanted: dict[int, int], helpers: int) -> None:
    granted = deal(wanted, helpers, lambda task: "me")
    hungry = [granted[task] for task in wanted if granted[task] < wanted[task]]
    assert hungry == sorted(hungry, reverse=True)


def test_nobody_runs_without_its_first_thread() -> None:
    assert deal({"a": 4, "b": 4}, 0, str) == {"a": 1, "b": 1}


OF_USERS = st.dictionaries(st.tuples(st.integers(0, 5), st.integers()), st.integers(1, 300), max_size=40)


@given(OF_USERS, st.integers(0, 500))
def test_users_share_alike_however_many_tasks_they_have(wanted: dict[tuple[int, int], int], helpers: int) -> None:
    granted = deal(wanted, helpers, lambda task: task[0])
    users = {user for user, _ in wanted}
    got = {user: sum(granted[task] - 1 for task in wanted if task[0] == user) for user in users}
    want = {user: sum(wanted[task] - 1 for task in wanted if task[0] == user) for user in users}
    assert sum(got.values()) == min(helpers, sum(want.values()))
    for user in users:
        if got[user] < want[user]:
            assert all(got[other] <= got[user] + 1 for other in users)


def test_many_tasks_of_one_user_leave_another_user_the_share_of_one() -> None:
    wanted = {f"a{each}": 4 for each in range(51)} | {"b": 40}
    granted = deal(wanted, 51, lambda task: task[0])
    assert granted["b"] == 1 + 25


def deal_on(percent: int, cpus: frozenset[int], **claims: tuple[int, frozenset[int]]) -> dict[str, int]:
    return deal_threads({task: Claim("me", *claim) for task, claim in claims.items()}, cpus, percent)


def test_a_task_on_few_cpus_leaves_the_helpers_to_those_who_may_use_more() -> None:
    both, first = frozenset({0, 1}), frozenset({0})
    assert deal_on(80, both, pinned=(2, first), free=(2, both)) == {"pinned": 1, "free": 2}
    eight, pair = frozenset(range(8)), frozenset({0, 1})
    assert deal_on(80, eight, a=(2, pair), b=(2, pair), c=(8, eight)) == {"a": 2, "b": 1, "c": 6}


CPU_SETS = st.sampled_from([frozenset(range(start, start + size)) for start in (0, 4, 8) for size in (1, 2, 4, 8)])
CONFINED = st.dictionaries(st.integers(), st.tuples(st.integers(1, 20), CPU_SETS, st.integers(0, 2)), max_size=30)


@given(CONFINED, st.integers(1, 100))
def test_no_set_of_cpus_has_more_helpers_than_its_share_and_none_is_wasted(
    tasks: dict[int, tuple[int, frozenset[int], int]], percent: int
) -> None:
    claims = {task: Claim(user, threads, cpus) for task, (threads, cpus, user) in tasks.items()}
    machine = frozenset(range(16))
    granted = deal_threads(claims, machine, percent)
    full = set()
    for cpus in {machine, *(claim.cpus for claim in claims.values())}:
        used = sum(granted[task] - 1 for task, claim in claims.items() if claim.cpus <= cpus)
        assert used <= helper_limit(len(cpus), percent)
        if used == helper_limit(len(cpus), percent):
            full.add(cpus)
    for task, claim in claims.items():
        assert 1 <= granted[task] <= claim.threads
        assert granted[task] == claim.threads or any(claim.cpus <= cpus for cpus in full)


def test_dealing_to_many_tasks_is_little_work() -> None:
    sets = [ALL, *(frozenset(range(start, start + 16)) for start in range(0, 256, 16))]
    claims = {task: Claim(task % 5, len(sets[task % 17]), sets[task % 17]) for task in range(200)}
    assert lines_of(lambda: deal_threads(claims, ALL, 80)) < 20_000
