"""The states of the hosts of a fleet, from the output of the command on each; it uses no connection and no screen."""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from ktaskfs.cli.follow import GRAVITY, STATUS_OF, Standing
from ktaskfs.errors import errno_name
from ktaskfs.units import SIZE_MAX, printable

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

WAITING: Final = "waiting"
"""There was no connection to the host yet."""
CONNECTING: Final = "connecting"
"""The host has not answered yet."""
STARTED: Final = "started"
"""The task goes on after --detach."""
LEFT: Final = "left"
"""The task goes on after a second ^C."""
REFUSED: Final = "refused"
"""The host's ktaskfs refuses the specification."""
UNREACHABLE: Final = "unreachable"
"""The connection failed."""
LOST: Final = "lost"
"""The connection ended before the task: the host hangs, or is dead."""
TIMEOUT: Final = "timeout"
"""It took longer than --timeout allows; the task goes on."""
SKIPPED: Final = "skipped"
"""The command did not connect to the host, after too many failures, ^C or --timeout."""
AT_THE_END: Final = frozenset({LEFT, TIMEOUT, SKIPPED})
"""States that many hosts get together, when the watching ends."""
FINE: Final = frozenset({"done", "planned", STARTED})
NO_CONNECTION: Final = 255
"""The exit status of ssh(1) without a connection, or after it was lost."""
FIGURES: Final = ("percent", "done", "total", "speed", "finish_usec", "elapsed_usec")
"""The numbers of an object that are shown."""
KEY_FAILED: Final = "Host key verification failed."
"""The words of ssh(1) after the reason: a changed key may be an attack, an unknown key is none."""
HEARD_MOST: Final = 300
"""Maximum characters of a line that is not an object."""
KEPT_MOST: Final = 32 << 20
"""Maximum bytes of the objects of one host that are kept. A daemon keeps 4 MiB of results of a user, which have up to
six times as many in JSON."""
OBJECT_SIZE: Final = 1024
"""Bytes of an object besides its line; about its size in Python."""
TOO_MUCH: Final = f"it says more than {KEPT_MOST >> 20} MiB"


class Host(NamedTuple):
    """One host: ``words`` explain a failure, ``heard`` is the last line that was not an object, ``size`` is the bytes
    of the tasks' last ones."""

    name: str
    state: str = WAITING
    tasks: Mapping[str, Standing] = {}
    words: str = ""
    heard: str = ""
    has_ended: bool = False
    size: int = 0

    @property
    def standing(self) -> Standing:
        """The status of the slowest running task, or of the worst ended one, with the host's name."""
        at_work = [each for each in self.tasks.values() if not each.has_ended]
        if at_work:
            found = min(at_work, key=finished_percent)
        else:
            found = min(self.tasks.values(), key=_gravity, default=Standing(self.name, self.state, {}))
        return found._replace(name=self.name, state=self.state, stale=found.stale and not self.has_ended)

    @property
    def own_words(self) -> str:
        """``words`` with its name."""
        return with_name(self.words, self.name)

    @property
    def status(self) -> int:
        """The exit status for this host."""
        return 0 if self.state in FINE else STATUS_OF.get(self.state, 1)


class HostGroup(NamedTuple):
    """Hosts in the same state, for the same reason."""

    state: str
    words: str
    hosts: Sequence[str]


def finished_percent(standing: Standing) -> float:
    """The finished part; 0 if unknown."""
    return standing.figures.get("percent") or 0.0


def _gravity(standing: Standing) -> int:
    return GRAVITY.index(STATUS_OF[standing.state])


def parsed(line: bytes) -> dict[str, Any] | None:
    """The object on a line; None for other text, from ssh, a shell or a login script.

    The host may be in other hands: figures are None or numbers up to SIZE_MAX, and no text but ``result`` has terminal
    escapes.
    """
    try:
        found = json.loads(line.decode())  # of bytes it would guess the encoding
    except (ValueError, RecursionError):
        return None
    if not isinstance(found, dict) or not all(map(_is_figure, map(found.get, FIGURES))):
        return None
    texts = {key: printable(each) for key, each in found.items() if isinstance(each, str) and key != "result"}
    return {**found, **texts}


def with_host(name: str, found: dict[str, Any]) -> str:
    """An object from a host on one line, with the host as its first member, whatever the host says."""
    try:
        return json.dumps({"host": None} | found | {"host": name})
    except RecursionError:
        return json.dumps({"host": name, "name": None, "error": "its answer has too many arrays in arrays"})


def _is_figure(value: object) -> bool:
    return value is None or (isinstance(value, int | float) and abs(value) <= SIZE_MAX)


def text_of_line(line: bytes) -> str:
    """The printable text of a line that is not an object."""
    text = line.decode(errors="backslashreplace").strip()
    return "".join(each if each.isprintable() else "?" for each in text[:HEARD_MOST])


def reason_of(line: bytes, last: str) -> str:
    """The text of a line that is not an object, or of the ``last`` one if that says more."""
    text = text_of_line(line)
    return last if last and text == KEY_FAILED else text


def without_name(words: str, host: str) -> str:
    """``words`` with %h for the host, so that hosts share a reason that differs only by their names."""
    if host not in words:  # a regular expression for each host is dear
        return words
    return re.sub(rf"(?<![\w.-]){re.escape(host)}(?![\w-])", "%h", words)


def with_name(words: str, host: str) -> str:
    """The inverse of ``without_name``."""
    return words.replace("%h", host)


def broken(status: int | None, heard: str, *, has_spoken: bool) -> tuple[str, str]:
    """The state and the reason for a connection that ended too early, with ``status``."""
    words = heard or ("the command printed no answer" if status == 0 else f"exit status {status}")
    if has_spoken:
        return LOST, heard or "the connection ended"
    return (UNREACHABLE if status == NO_CONNECTION else "failed"), words


class Fleet:
    """All hosts, in the order of their names."""

    def __init__(self, names: Iterable[str], *, tasks: int = 1, detach: bool = False) -> None:
        """``tasks`` of each host. ``detach``: the command on a host ends before its tasks do."""
        self._tasks = tasks
        self._detach = detach
        self._hosts = {name: Host(name) for name in names}
        self._sizes: dict[tuple[str, str], int] = {}
        """Bytes of the last object, by host and task."""

    def __iter__(self) -> Iterator[Host]:
        return iter(self._hosts.values())

    def __getitem__(self, name: str) -> Host:
        return self._hosts[name]

    def __contains__(self, name: str) -> bool:
        return name in self._hosts

    def connecting(self, name: str) -> None:
        """A connection to the host starts."""
        self._hosts[name] = self._hosts[name]._replace(state=CONNECTING)

    def heard(self, name: str, line: bytes) -> dict[str, Any] | None:
        """Take a line from a host; returns the object of a task or of a refusal on it, None for other lines.

        After too many of them, nothing that the host says counts.
        """
        host = self._hosts[name]
        if host.heard == TOO_MUCH:
            return None
        told = parsed(line)
        if told is None or not isinstance(told.get("state"), str):
            if told is None:
                self._hosts[name] = host._replace(heard=reason_of(line, host.heard))
            return None
        if told["state"] == REFUSED:
            errno = told.get("errno")
            words = f"{errno_name(errno) if isinstance(errno, int) else 'refused'}: {told.get('error')}"
            self._hosts[name] = host._replace(state=REFUSED, words=words)
            return told
        task, result = told.get("name"), told.get("result")
        if not isinstance(task, str):
            return None
        size = OBJECT_SIZE + len(line)
        kept = host.size + size - self._sizes.get((name, task), 0)
        if kept > KEPT_MOST:
            self._hosts[name] = host._replace(heard=TOO_MUCH)
            return None
        self._sizes[name, task] = size
        if isinstance(result, str):  # most hosts say the same: it is kept once
            result = sys.intern(result)
        standing = Standing(task, told["state"], told, result, bool(told.get("stale")))
        tasks = {**host.tasks, task: standing}
        state = standing.state
        if len(tasks) > 1:
            at_work = [each for each in tasks.values() if not each.has_ended] or list(tasks.values())
            state = min(at_work, key=finished_percent).state
        self._hosts[name] = Host(name, state, tasks, host.words, size=kept)
        return told

    def ended(self, name: str, status: int | None) -> None:
        """The connection to a host has ended."""
        host = self._hosts[name]
        if host.has_ended:
            return
        state, words = host.state, host.words
        are_known = len(host.tasks) >= self._tasks  # the connection may end between the lines of two
        if words:  # of a refusal, even if other tasks of the host are done
            state = REFUSED
        elif host.heard == TOO_MUCH:  # the ends of some tasks are not known, whatever the status
            state, words = LOST, TOO_MUCH
        elif are_known and all(each.has_ended for each in host.tasks.values()):
            worst = min(host.tasks.values(), key=_gravity)
            state, words = worst.state, _complaint(worst)
        elif are_known and status == 0 and self._detach:
            state = STARTED
        else:
            state, words = broken(status, host.heard, has_spoken=bool(host.tasks))
        self.end(name, state, words)

    def end(self, name: str, state: str, words: str = "") -> None:
        """Set the final state of a host."""
        words = without_name(words, name)
        self._hosts[name] = self._hosts[name]._replace(state=state, words=words, has_ended=True)

    @property
    def failed(self) -> int:
        """How many hosts have ended in a failure."""
        return sum(each.has_ended and each.state not in FINE for each in self)

    @property
    def exit_status(self) -> int:
        """The exit status of the command."""
        found = {each.status for each in self}
        return next((each for each in GRAVITY if each in found), 0)

    def counts(self) -> dict[str, int]:
        """How many hosts are in which state, the most first."""
        return dict(Counter(each.state for each in self).most_common())

    def groups(self) -> list[HostGroup]:
        """The hosts that have ended, by how; first those that went well, then by number."""
        found: dict[tuple[str, str], list[str]] = {}
        for each in self:
            if each.has_ended:
                found.setdefault((each.state, each.words), []).append(each.name)
        groups = [HostGroup(state, words, names) for (state, words), names in found.items()]
        return sorted(groups, key=lambda each: (each.state not in FINE, -len(each.hosts)))

    def results(self) -> dict[tuple[str, str], list[str]]:
        """The hosts by task and nonempty result."""
        found: dict[tuple[str, str], list[str]] = {}
        for host in self:
            for task in host.tasks.values():
                if task.result:
                    found.setdefault((task.name, task.result), []).append(host.name)
        return found

    def speed(self) -> float:
        """Bytes a second of all hosts."""
        standings = [task for host in self if not host.has_ended for task in host.tasks.values()]
        return sum(
            each.figures.get("speed") or 0
            for each in standings
            if each.state == "running" and each.figures.get("units") == "bytes"
        )


def _complaint(standing: Standing) -> str:
    """Why a task failed, without text that differs from host to host."""
    figures = standing.figures
    if standing.state == "failed":
        number = figures.get("errno")
        return f"{errno_name(number) if isinstance(number, int) else 'failed'}: {figures.get('error')}"
    return ""
