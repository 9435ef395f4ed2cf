# Copyright (c) 2026, The ktaskfs authors
# SPDX-License-Identifier: MIT
"""Examines a task, decides what the wanted state needs, and does it."""

from __future__ import annotations

import contextlib
import errno
import time
from typing import TYPE_CHECKING

from ansible_collections.ktaskfs.host.plugins.module_utils import targets, values
from ansible_collections.ktaskfs.host.plugins.module_utils.mounted import (
    ABSENT,
    AWAY,
    GONE,
    Refused,
    file_of,
    table,
)

if TYPE_CHECKING:
    from typing import Any

    from ansible_collections.ktaskfs.host.plugins.module_utils.mounted import Mounted

AT_WORK = ("queued", "starting", "running", "paused")
ENDED_EARLY = ("failed", "cancelled", "interrupted")
TUNABLE = ("max_threads", "nice", "rate_max")
"""Parameters that can change while a task runs. They do not describe its work."""
OF_THE_START = ("name", "op", "plan", "queue", "replace")
"""Keys of a spec that are no parameters of the operation."""
TRIES = 10
"""How many times a task may change between check and action."""

START, REPLACE, RESUME, SET, CANCEL, FORGET = "start", "replace", "resume", "set", "cancel", "forget"


class Failed(Exception):
    """The task did not reach the wanted state."""


class Wanted:
    """The user's request: the name of a task, its work, and its wanted state."""

    def __init__(self, *, name: str, state: str, op: str | None, params: dict[str, Any], rerun: bool) -> None:
        self.name = name
        self.state = state
        self.op = op or ""
        self.params = params
        self.rerun = rerun


class Request:
    """One call of the module. Waiting ends at ``end`` by time.monotonic()."""

    def __init__(self, mounted: Mounted, wanted: Wanted, end: float) -> None:
        self.mounted = mounted
        self.wanted = wanted
        self.end = end
        self._kinds, self._defaults = self._declared()
        self.values = values.given(wanted.params, self._kinds)

    def _declared(self) -> tuple[dict[str, str], dict[str, str]]:
        """Returns type and default of each parameter of the operation; empty if the operation does not exist."""
        if not self.wanted.op:
            return {}, {}
        try:
            rows = table(self.mounted.read(f"operations/{self.wanted.op}/parameters"))
        except Refused as error:
            if error.number != errno.ENOENT:
                raise
            return {}, {}
        return {row["name"]: row["type"] for row in rows}, {row["name"]: row["default"] for row in rows}

    @property
    def spec(self) -> dict[str, str]:
        """The spec of the task."""
        return {"op": self.wanted.op, "name": self.wanted.name, **self.values}

    def differences(self) -> dict[str, str]:
        """Returns the existing task's values that differ from the wanted ones, by key, without tunables."""
        has = self._value("op")
        if has != self.wanted.op:
            return {"op": has}
        found = {}
        for key in self._kinds.keys() | self.values.keys():
            if key in TUNABLE or key in OF_THE_START:
                continue
            has = self._value(key)
            if key in self.values:
                same = values.alike(has, self.values[key], self._kinds.get(key, ""))
            else:
                same = values.is_default(has, self._defaults[key])
            if not same:
                found[key] = has
        return found

    def to_set(self) -> dict[str, str]:
        """Returns the wanted values of tunables that differ in the task."""
        wanted = {key: self.values[key] for key in TUNABLE if key in self.values}
        return {
            key: value for key, value in wanted.items() if not values.alike(self._value(key), value, self._kinds[key])
        }

    def own_tunables(self) -> dict[str, str]:
        """Returns the task's values of the wanted tunables."""
        return {key: self._value(key) for key in TUNABLE if key in self.values}

    def _value(self, key: str) -> str:
        """Returns the task's value of a parameter; empty if the task does not have the parameter."""
        try:
            return self.mounted.read(file_of(self.wanted.name, key)).rstrip("\n")
        except Refused as error:
            if error.number not in GONE:
                raise
            return ""

    def action(self, state: str) -> str | None:
        """Returns the action for a task in this state; None if nothing is missing. Raises Failed."""
        if self.wanted.state == "cancelled":
            return CANCEL if state in AT_WORK else None
        if self.wanted.state == ABSENT:
            return CANCEL if state in AT_WORK else None if state == ABSENT else FORGET
        if not self.mounted.is_own(self.wanted.name):  # whose path may lead to another file
            raise Failed(f"the task {self.wanted.name} is another user's")
        if state in (ABSENT, "new"):
            return START  # for a new one, which somebody makes with mkdir(1), the daemon says what is wrong
        if state == "planned":
            return REPLACE
        different = self.differences()
        if state in AT_WORK:
            if different:
                text = ", ".join(f"{key}={value}" for key, value in sorted(different.items()))
                raise Failed(f"the task {self.wanted.name} is at work, and does something else: {text}")
            return RESUME if state == "paused" else SET if self.to_set() else None
        if different:
            return REPLACE
        if state == "done":
            return REPLACE if self.wanted.rerun or targets.is_lost(self) else None
        return RESUME

    def act(self, action: str) -> None:
        """Do the action once. Raises Refused."""
        name = self.wanted.name
        if action == START:
            self.mounted.start(self.spec)
        elif action == REPLACE:
            self.mounted.start({**self.spec, "replace": "1"})
        elif action == FORGET:
            self.mounted.forget(name)
        elif action == CANCEL:
            self.mounted.write(file_of(name, "control"), "cancel")
            self.mounted.wait_while(name, AT_WORK, self.end)
        else:
            for key, value in self.to_set().items():
                self.mounted.write(file_of(name, key), value)
            if action == RESUME:
                self._resume()

    def _resume(self) -> None:
        """Do the rest, or the whole work if the rest cannot be done alone. Raises Refused."""
        ended = self.mounted.state(self.wanted.name) in ENDED_EARLY
        try:
            self.mounted.write(file_of(self.wanted.name, "control"), "resume")
        except Refused as error:
            # ESTALE says that the file is another one now. A dead daemon may say it, too: then the start decides.
            if not ended or (error.number in (errno.EBUSY, *AWAY) and error.number != errno.ESTALE):
                raise
            self.mounted.start({**self.spec, "replace": "1"})

    def carry_out(self) -> list[str]:
        """Act until nothing is missing; returns the actions. Raises Failed and Refused.

        Somebody else may start, end or forget the task at the same time. Then the daemon refuses the action, and the
        next check decides again. If the daemon ends during an action, the next check shows whether it took effect.
        """
        done: list[str] = []
        for _ in range(TRIES):
            action = self.action(self.mounted.state(self.wanted.name))
            if action is None:
                return done
            try:
                self.act(action)
            except Refused as error:
                if not _is_race(action, error):
                    raise
                refused = error
                if error.number in AWAY:
                    done.append(action)
                continue
            done.append(action)
            if action != CANCEL:
                return done
            refused = Refused(f"the task {self.wanted.name} is started again and again", errno.EBUSY)
            self._require_end()
        raise refused

    def _require_end(self) -> None:
        state = self.mounted.state(self.wanted.name)
        if state in AT_WORK:
            raise Failed(f"the task {self.wanted.name} was cancelled, and is still {state} at the timeout")

    def settle(self) -> str:
        """Wait until the task has the wanted state, and return the state. Raises Failed."""
        name = self.wanted.name
        if self.wanted.state not in ("done", "started"):
            return self.mounted.state(name)
        states = AT_WORK if self.wanted.state == "done" else ("starting",)
        state = self.mounted.wait_while(name, states, self.end)
        if state == "paused" and self.wanted.state == "done":
            raise Failed(f"the task {name} is paused at the timeout")
        if state in states:
            percent = self.mounted.figures(name).get("percent")
            part = "" if percent is None else f" at {percent} %"
            raise Failed(f"the task {name} is still {state}{part} at the timeout; it goes on")
        if state not in ("done", *AT_WORK):
            text = "" if state == ABSENT else self._value("error").strip()
            raise Failed(f"the task {name} is {state}" + (f": {text}" if text not in ("", "0") else ""))
        return state

    def plan(self) -> dict[str, str]:
        """Returns the effect of a start, by plan=1, which changes nothing. Raises Refused and Failed."""
        spec = {key: value for key, value in self.spec.items() if key not in ("name", "queue")}
        name = self.mounted.start({**spec, "plan": "1"})
        try:
            state = self.mounted.wait_while(name, AT_WORK, max(self.end, time.monotonic() + 1))
            if state in AT_WORK:
                raise Failed(f"the plan of {self.wanted.name} is not ready at the timeout")
            if state != "planned":
                figures = self.mounted.figures(name)
                raise Refused(figures.get("error") or f"the plan is {state}", figures.get("errno") or errno.EIO)
            lines = self.mounted.read(file_of(name, "result")).splitlines()
        finally:
            with contextlib.suppress(Refused, OSError):  # the daemon forgets it with its oldest tasks
                self.mounted.forget(name)
        return dict(line.partition(" ")[::2] for line in lines)

    def number(self, key: str) -> int:
        """Returns the number of a parameter; 0 if it is not given or not a number."""
        found = values.number(self.values.get(key, "0"))
        return found if isinstance(found, int) else 0


def _is_race(action: str, error: Refused) -> bool:
    """Whether the task may have changed between check and action, or the daemon may have ended."""
    if error.number in AWAY:
        return True
    start, change = (errno.EEXIST,), (*GONE, errno.EBUSY)
    races = {START: start, REPLACE: start, RESUME: (*start, *change)}
    return error.number in races.get(action, change)
