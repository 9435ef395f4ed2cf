"""Which part of a node's range is done, from its position and the chunks that are not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable


class Span(NamedTuple):
    """Units ``start`` to ``end`` of a node, counted from its start, and the client's positions of the two ends."""

    start: int
    end: int
    first: Any
    last: Any


def split(handed_out: Span, size: int, held: Iterable[Span]) -> tuple[list[Span], list[Span]]:
    """The finished and the unfinished spans of a node of ``size`` units, each in order and merged where they touch.

    ``handed_out`` runs from the node's start to its position; ``held`` are the chunks that run or have failed. The
    last unfinished span may end at None: nobody knows a position that ``iter_func`` has not reached.
    """
    finished: list[Span] = []
    unfinished: list[Span] = []
    done_to, done_at = handed_out.start, handed_out.first
    # A chunk that begins at the position was on its way out when its thread was interrupted: the rest covers it.
    inside = sorted((span for span in held if span.start < handed_out.end), key=lambda span: span.start)
    rest = Span(handed_out.end, size, handed_out.last, None)
    for span in (*inside, rest):
        if span.start > done_to:
            finished.append(Span(done_to, span.start, done_at, span.first))
        if span.end > span.start:
            if unfinished and unfinished[-1].end == span.start:
                before = unfinished.pop()
                span = Span(before.start, span.end, before.first, span.last)
            unfinished.append(span)
        done_to, done_at = span.end, span.last
    return finished, unfinished
