"""``ktaskfs run``: starts tasks and follows them to their ends. ``ktaskfs wait`` follows existing ones."""

from __future__ import annotations

import errno
import functools
import json
import os
import shlex
import sys
from typing import TYPE_CHECKING, Final

from ktaskfs.cli.arguments import DEFAULT_MOUNT
from ktaskfs.cli.complain import complain, say
from ktaskfs.cli.follow import exit_status, follow, gravest
from ktaskfs.cli.interrupts import INTERRUPTED
from ktaskfs.cli.mounted import Mounted
from ktaskfs.cli.orders import Orders, obey
from ktaskfs.cli.reports import as_json, report_for, show_end
from ktaskfs.cli.spec_files import spec_files
from ktaskfs.cli.specs import of_words
from ktaskfs.cli.start import IfExists, does_the_same, start, taken_name
from ktaskfs.cli.watcher import fork_watched
from ktaskfs.errors import DaemonAway, KtaskfsError, Refused, TargetError, WrongCommandLine

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterable, Sequence

    from ktaskfs.cli.follow import Standing
    from ktaskfs.cli.reports import Report
    from ktaskfs.cli.spec_files import SpecFile
    from ktaskfs.cli.watcher import PassedInterrupts

LAST: Final = 2
"""The number of the ^C that leaves the tasks. The first ^C cancels them."""
OVER: Final = (errno.EBUSY, errno.ENODEV, errno.ENOENT)
"""The errno of a cancel if the task has ended meanwhile, or was removed."""


def run(given: argparse.Namespace) -> int:
    """Start the specs of the command line; returns the exit status. Raises KtaskfsError for what is refused."""
    text = "" if given.files else text_of(given.spec)
    interrupts = fork_watched(LAST, "the tasks may start anyway: see ktaskfs ls")
    reads_orders = given.json and not given.detach and given.spec != ["-"]
    orders = Orders.of_standard_input() if reads_orders else Orders(None)
    if given.files:
        return _run_files(given, interrupts, orders)
    return _run_text(given, text, interrupts, orders)


def _run_files(given: argparse.Namespace, interrupts: PassedInterrupts, orders: Orders) -> int:
    """Run each file, even after a failed one, but not after ^C or "detach"."""
    statuses: list[int] = []
    for file in spec_files(given.spec):
        statuses.append(_run_file(given, file, interrupts, orders))
        if statuses[-1] == INTERRUPTED or orders.leave:
            break
    return gravest(statuses)


def _run_file(given: argparse.Namespace, file: SpecFile, interrupts: PassedInterrupts, orders: Orders) -> int:
    """Run a file up to the first line that fails, or whose tasks are left. Raises DaemonAway."""
    place = ""
    try:
        for place, text in file.lines():
            if status := _run_text(given, text, interrupts, orders):
                say(f"{place}: not done; the following lines are skipped")
                return status
            if orders.leave:
                break
    except DaemonAway:
        raise
    except KtaskfsError as error:
        complain(error, place)
        return 1
    return 0


def _run_text(given: argparse.Namespace, text: str, interrupts: PassedInterrupts, orders: Orders) -> int:
    """Start the specs in ``text`` together, and follow them as the options ask. Raises KtaskfsError."""
    mounted = Mounted(given.mount)
    try:
        names, refused = start(mounted, text, IfExists(given.if_exists or IfExists.FAIL), plan=given.plan)
    except WrongCommandLine:
        raise
    except KtaskfsError as error:
        if not given.json:
            taken = None if error.errno != errno.EEXIST or given.if_exists else taken_name(mounted, text)
            if taken is None:
                raise
            raise _with_a_way_out(error, is_own=mounted.owner(taken) == os.geteuid()) from error
        print(_refusal(error), flush=True)
        return 1
    for each in refused:
        if given.json:
            print(_refusal(each), flush=True)
        else:
            complain(each)
    # Another command may do the work again before this one has seen its end.
    is_heir = functools.partial(does_the_same, mounted, text if given.if_exists == IfExists.RERUN else "")
    return gravest([_go_on(given, mounted, names, is_heir, interrupts, orders), *(1 for _ in refused)])


def _go_on(
    given: argparse.Namespace,
    mounted: Mounted,
    names: Sequence[str],
    is_heir: Callable[[str], bool],
    interrupts: PassedInterrupts,
    orders: Orders,
) -> int:
    """Follow the started tasks, or print their names; returns the exit status."""
    if given.detach:
        lines: Iterable[str] = names
        if given.json:
            standings = next(iter(follow(mounted, names, 0, interrupts, Orders(None), is_heir)))
            lines = map(as_json, standings)
        for line in lines:
            print(line, flush=True)
        return 0
    return _stay(mounted, names, report_for(given, os.environ), interrupts, orders, is_heir, cancels=True)


def text_of(words: Sequence[str]) -> str:
    """The specs of the command line, or of standard input. Raises WrongCommandLine if there is none, TargetError."""
    try:
        text = os.fsdecode(sys.stdin.buffer.read()).strip() if words == ["-"] else of_words(words)
    except OSError as error:
        raise TargetError.from_os(error, "standard input") from error
    if not text.strip():
        raise WrongCommandLine("there is no specification")
    return text


def wait(given: argparse.Namespace) -> int:
    """Follow the tasks of these names to their ends; ^C does not stop them."""
    from ktaskfs.cli.names import chosen

    mounted = Mounted(given.mount)
    interrupts = fork_watched(1, "the tasks go on")
    report = report_for(given, os.environ)
    names = chosen(mounted, given.name, report.note)
    return _stay(mounted, names, report, interrupts, Orders(None), cancels=False)


def _with_a_way_out(error: KtaskfsError, *, is_own: bool) -> KtaskfsError:
    """The refusal of a name that a task has, with advice for a person. Another user's task cannot be joined."""
    ways = "follow it with --if-exists=join, do it again with --if-exists=rerun, or " if is_own else ""
    words = f"{error.message}: {ways}choose another name="
    command, caret = (error.command, error.caret) if isinstance(error, Refused) else ("", "")
    return Refused(words, errno=errno.EEXIST, command=command, caret=caret)


def _refusal(error: KtaskfsError) -> str:
    command, caret = (error.command, error.caret) if isinstance(error, Refused) else ("", "")
    found = {"name": None, "state": "refused", "errno": error.errno, "error": error.message}
    return json.dumps({**found, "command": command or None, "caret": caret or None})


def _stay(
    mounted: Mounted,
    names: Sequence[str],
    report: Report,
    interrupts: PassedInterrupts,
    orders: Orders,
    is_heir: Callable[[str], bool] = lambda name: False,
    *,
    cancels: bool,
) -> int:
    """Show the status of tasks until all have ended, ^C leaves them, or "detach" comes.

    If ``cancels``, the first ^C cancels the tasks, and the second one leaves them; otherwise the first one leaves them.
    Returns the exit status.
    """
    interrupts.at_the_end(_follow_again(mounted, names))
    to_cancel = set(names) if cancels else set()
    told = False
    standings: Sequence[Standing] = []
    try:
        for standings in follow(mounted, names, report.every, interrupts, orders, is_heir):
            report.show(standings)
            _obey(mounted, standings, orders)
            if orders.leave:
                return 0
            if interrupts.count > cancels:
                break
            if interrupts.count:
                if not told:
                    report.note("cancelling; ^C again leaves the rest running")
                    told = True
                to_cancel -= _cancel(mounted, [each for each in standings if each.name in to_cancel])
    finally:
        report.close()
    show_end([each for each in standings if each.has_ended], report)
    if at_work := [each.name for each in standings if not each.has_ended]:
        say(_follow_again(mounted, at_work))
    return INTERRUPTED if interrupts.count else exit_status(standings)


def _follow_again(mounted: Mounted, names: Sequence[str]) -> str:
    place = "" if mounted.path == DEFAULT_MOUNT else f" -m {shlex.quote(mounted.path)}"
    return f"the tasks go on; follow them with: ktaskfs wait{place} {' '.join(names)}"


def _obey(mounted: Mounted, standings: Sequence[Standing], orders: Orders) -> None:
    """Carry out the commands that have come, up to one that says to leave the tasks."""
    for line in orders.take():
        for answer in obey(mounted, line, [each.name for each in standings if not each.has_ended]):
            print(answer, flush=True)


def _cancel(mounted: Mounted, standings: Sequence[Standing]) -> set[str]:
    """Cancel the tasks that have not ended. Returns the names of those that need no further cancel."""
    asked = set()
    for each in standings:
        try:
            if not each.has_ended:
                mounted._replace(patience=0).write(f"tasks/{each.name}/control", "cancel")
        except DaemonAway:  # try again when there is a daemon
            continue
        except (Refused, TargetError) as error:
            if error.errno not in OVER:
                raise
        asked.add(each.name)
    return asked
