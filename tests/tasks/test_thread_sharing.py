"""How threads are dealt out to tasks."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ktaskfs.tasks.thread_sharing import deal_threads, helper_limit

WANTED = st.dictionaries(st.integers(), st.integers(1, 300), max_size=40)


@given(st.integers(1, 4096), st.integers(1, 100))
def test_helpers_never_take_more_than_their_share_of_the_cpus(cpus: int, percent: int) -> None:
    helpers = helper_limit(cpus, percent)
    assert helpers * 100 <= cpus * percent < (helpers + 1) * 100


@given(WANTED, st.integers(0, 5000))
def test_the_share_is_dealt_out_evenly_and_wholly(wanted: dict[int, int], helpers: int) -> None:
    granted = deal_threads(wanted, helpers, lambda task: "me")
    assert list(granted) == list(wanted)
    assert all(1 <= granted[task] <= wanted[task] for task in wanted)
    used = sum(granted.values()) - len(wanted)
    assert used == min(helpers, sum(wanted.values()) - len(wanted))
    hungry = [task for task in wanted if granted[task] < wanted[task]]
    # Nobody who still wants one has less than another by more than the one that could not be split.
    for task in hungry:
        assert all(granted[other] <= granted[task] + 1 for other in wanted)


@given(WANTED, st.integers(0, 5000))
def test_ties_go_to_the_earlier_task(wanted: dict[int, int], helpers: int) -> None:
    granted = deal_threads(wanted, helpers, lambda task: "me")
    hungry = [granted[task] for task in wanted if granted[task] < wanted[task]]
    assert hungry == sorted(hungry, reverse=True)


def test_nobody_runs_without_its_first_thread() -> None:
    assert deal_threads({"a": 4, "b": 4}, 0, str) == {"a": 1, "b": 1}


OF_USERS = st.dictionaries(st.tuples(st.integers(0, 5), st.integers()), st.integers(1, 300), max_size=40)


@given(OF_USERS, st.integers(0, 500))
def test_users_share_alike_however_many_tasks_they_have(wanted: dict[tuple[int, int], int], helpers: int) -> None:
    granted = deal_threads(wanted, helpers, lambda task: task[0])
    users = {user for user, _ in wanted}
    got = {user: sum(granted[task] - 1 for task in wanted if task[0] == user) for user in users}
    want = {user: sum(wanted[task] - 1 for task in wanted if task[0] == user) for user in users}
    assert sum(got.values()) == min(helpers, sum(want.values()))
    for user in users:
        if got[user] < want[user]:
            assert all(got[other] <= got[user] + 1 for other in users)


def test_many_tasks_of_one_user_leave_another_user_the_share_of_one() -> None:
    wanted = {f"a{each}": 4 for each in range(51)} | {"b": 40}
    granted = deal_threads(wanted, 51, lambda task: task[0])
    assert granted["b"] == 1 + 25
