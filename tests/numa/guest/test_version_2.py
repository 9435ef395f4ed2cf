"""The tests of control groups again, where all controllers are in the hierarchy of version 2."""

from __future__ import annotations

from tests.host.test_group_limits import test_a_limit_that_would_be_left_is_an_error_and_no_limit_is_none
from tests.mount.test_control_groups import (
    huge,
    test_a_caller_in_a_control_group_namespace,
    test_a_cpuset_holds,
    test_a_group_cannot_be_removed_while_a_worker_is_in_it,
    test_a_group_that_may_have_no_processes_is_refused,
    test_a_group_that_was_removed_after_the_open_is_missed,
    test_a_limit_on_processes_holds,
    test_in_a_frozen_group_a_start_waits_for_the_thaw,
    test_memory_is_charged_to_the_caller,
    test_pages_are_charged_to_the_caller,
    test_the_worker_is_in_all_its_callers_groups,
)
from tests.mount.test_group_limits import (
    test_a_frozen_worker_can_be_killed,
    test_a_limit_on_huge_pages_that_is_met_at_work_is_named,
    test_a_limit_on_memory_that_is_met_at_work_ends_the_task_and_kills_nobody,
    test_a_worker_that_is_killed_for_the_groups_limit_is_interrupted_and_says_so,
    test_a_worker_whose_group_is_killed_is_interrupted_and_can_be_resumed,
    test_more_huge_pages_than_the_group_may_have_are_refused,
    test_more_memory_than_the_group_may_have_is_refused,
)

__all__ = [
    "huge",
    "test_a_caller_in_a_control_group_namespace",
    "test_a_cpuset_holds",
    "test_a_frozen_worker_can_be_killed",
    "test_a_group_cannot_be_removed_while_a_worker_is_in_it",
    "test_a_group_that_may_have_no_processes_is_refused",
    "test_a_group_that_was_removed_after_the_open_is_missed",
    "test_a_limit_on_huge_pages_that_is_met_at_work_is_named",
    "test_a_limit_on_memory_that_is_met_at_work_ends_the_task_and_kills_nobody",
    "test_a_limit_on_processes_holds",
    "test_a_limit_that_would_be_left_is_an_error_and_no_limit_is_none",
    "test_a_worker_that_is_killed_for_the_groups_limit_is_interrupted_and_says_so",
    "test_a_worker_whose_group_is_killed_is_interrupted_and_can_be_resumed",
    "test_in_a_frozen_group_a_start_waits_for_the_thaw",
    "test_memory_is_charged_to_the_caller",
    "test_more_huge_pages_than_the_group_may_have_are_refused",
    "test_more_memory_than_the_group_may_have_is_refused",
    "test_pages_are_charged_to_the_caller",
    "test_the_worker_is_in_all_its_callers_groups",
]
