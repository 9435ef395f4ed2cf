"""Commands on hosts that die and come back: two rounds of the long run, and that it notices what is wrong."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.fleet.faults import DAEMON, SSHD
from tests.soak.fleet import Rounds, state_of, until_clean

if TYPE_CHECKING:
    from tests.fleet.hosts import Host, Place


def test_hosts_that_die_and_come_back(place: Place, hosts: list[Host]) -> None:
    rounds = Rounds(place, hosts, 1)
    rounds.round({hosts[2]: SSHD}, meanwhile=False)
    rounds.round({hosts[0]: DAEMON}, meanwhile=True)
    assert rounds.broken == []
    assert rounds.counts["commands ls"] == 3


def test_a_failure_that_is_not_told_is_noticed(place: Place, hosts: list[Host]) -> None:
    rounds = Rounds(place, hosts, 1)
    does_nothing = SSHD._replace(begin=lambda host: None, end=lambda host: None)
    rounds.round({hosts[1]: does_nothing}, meanwhile=False)
    assert "run says {} and not {'hv2': 'unreachable'}" in rounds.broken[0]


def test_what_is_left_is_noticed(hosts: list[Host]) -> None:
    clean = state_of(hosts[0])
    until_clean(hosts[0], clean)
    hosts[0].sh("touch /dev/shm/rest")
    with pytest.raises(AssertionError, match="'files':.*rest"):
        until_clean(hosts[0], clean, deadline=0)
