"""Hands for tasks of any size, and what they answer."""

from __future__ import annotations

import threading

import pytest

from ktaskfs.host.hands import Hands
from ktaskfs.memory import hand_code
from tests.support.poll import until


def wait_for_one_thread() -> None:
    """Return when this process has one thread: with others, as trio keeps one idle for ten seconds, it has no hands."""
    until(lambda: threading.active_count() == 1, "this process has one thread")


class Answers(list[bool]):
    """For each chunk that a hand was asked for, whether it did it."""


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> Answers:
    """Have hands for tasks of any size."""
    wait_for_one_thread()
    found, do = Answers(), Hands.do

    def seen(hands: Hands, start: int, end: int) -> bytes | None:
        answer = do(hands, start, end)
        found.append(answer is not None)
        return answer

    monkeypatch.setattr(Hands, "do", seen)
    monkeypatch.setattr(hand_code, "WORTH", 1 << 20)
    monkeypatch.setattr(hand_code, "WORTH_IN_CACHE", 1 << 20)
    return found
