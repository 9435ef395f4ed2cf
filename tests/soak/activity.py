"""The actions of a user while the daemon is about to die, and the checks of them afterwards."""

from __future__ import annotations

import faulthandler
import json
import os
import signal
import time
import traceback
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from tests.soak.client import MIB, PATIENCE, Client, errno_name

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.support.users import User

TASKS_MAX: Final = 8
"""Of each user; beyond that the oldest are brought to their end."""
LATE: Final = 0.8
"""Seconds: an answer to a start that takes longer may say "ok" while the task is still starting."""
PATTERN: Final = "a5000b"
VERBS: Final = ("pause", "resume", "cancel", "kill", "rmdir", "rate")


@dataclass
class Told:
    """The notes of an activity: a line before each request, and one after its answer."""

    lines: list[dict[str, str]] = field(default_factory=list)
    broken: str = ""


class MountDied(Exception):
    """A request had no answer."""


class Activity(Client):
    """Acts on tasks with its own names until the daemon dies, and notes each action before and after."""

    def __init__(self, mount: Path, directory: Path, name: str, seed: int, tasks: list[str]) -> None:
        super().__init__(mount, name, seed)
        self._directory = directory
        self._names = tasks
        self._out = -1

    def work(self, out: int) -> None:
        """Note the actions on ``out``; returns when the mount is dead."""
        self._out = out
        while True:
            try:
                self._act()
            except MountDied:
                return
            time.sleep(self.random.uniform(0, 0.02))

    def _say(self, **fields: str) -> None:
        os.write(self._out, json.dumps(fields).encode() + b"\n")

    def _ask(self, verb: str, task: str, request: Callable[[], str], **fields: str) -> str:
        self._say(verb=verb, task=task, **fields)
        begin = time.monotonic()
        got = request()
        if got in ("ENOTCONN", "ECONNABORTED"):
            raise MountDied
        self._say(answer=got, late="late" if time.monotonic() - begin > LATE else "")
        return got

    def _act(self) -> None:
        if len(self._names) < TASKS_MAX and self.random.random() < 0.4:
            self._make()
        elif self._names:
            self._command(self.random.choice(self._names))

    def _make(self) -> None:
        name = self.new_name()
        operation = self.random.choice(["fallocate", "fallocate", "fill", "checksum"])
        path, size = self._directory / name, self.random.randint(4, 32) * 256 * 1024
        if operation != "fallocate":
            path.write_bytes(bytes(size))
        rate = self.random.choice(["max", str(MIB), str(4 * MIB)])
        options = {"path": str(path), "length": str(size), "chunk": "64K", "rate_max": rate}
        if operation == "fill":
            options["pattern"] = PATTERN
        said = {"operation": operation, "path": str(path), "size": str(size)}
        if self.random.random() < 0.7:
            spec = " ".join([operation, *(f"{key}={value}" for key, value in options.items()), f"name={name}"])
            got = self._ask("run", name, lambda: self.write("tasks/control", spec), **said)
        else:
            got = self._ask("mkdir", name, lambda: self._mkdir(name), **said)
            if got == "ok" and self.random.random() < 0.8:
                spec = " ".join([operation, *(f"{key}={value}" for key, value in options.items())])
                got = self._ask("start", name, lambda: self.write(f"tasks/{name}/control", spec))
        assert got == "ok", got
        self._names.append(name)

    def _command(self, name: str) -> None:
        verb = self.random.choice(VERBS)
        if verb == "rmdir":
            if self._ask(verb, name, lambda: self._rmdir(name)) == "ok":
                self._names.remove(name)
        elif verb == "rate":
            self._ask(verb, name, lambda: self.write(f"tasks/{name}/rate_max", "2M"))
        else:
            self._ask(verb, name, lambda: self.write(f"tasks/{name}/control", verb))

    def _mkdir(self, name: str) -> str:
        try:
            os.mkdir(self.mount / "tasks" / name)
        except OSError as error:
            return errno_name(error)
        return "ok"

    def _rmdir(self, name: str) -> str:
        try:
            os.rmdir(self.mount / "tasks" / name)
        except OSError as error:
            return errno_name(error)
        return "ok"


def become(user: User | None) -> None:
    """Turn this process, a forked one, into the user's; None leaves it root's."""
    if user is not None:
        os.setgroups([])
        os.setgid(user.gid)
        os.setuid(user.uid)


class Running:
    """``activity`` in a separate process, as ``user``."""

    def __init__(self, activity: Activity, user: User | None) -> None:
        self._reader, writer = os.pipe()
        self._pid = os.fork()
        if self._pid == 0:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            os.close(self._reader)
            try:
                become(user)
                faulthandler.dump_traceback_later(4 * PATIENCE, exit=True)  # a request that hangs blocks signals
                activity.work(writer)
            except BaseException:
                os.write(writer, json.dumps({"broken": traceback.format_exc()}).encode() + b"\n")
            os._exit(0)
        os.close(writer)

    def hear(self) -> Told:
        """All of its notes; it ends by itself when the mount is dead."""
        told = Told()
        with open(self._reader, "rb") as stream:
            for line in stream:
                fields = json.loads(line)
                if "broken" in fields:
                    told.broken = fields["broken"]
                else:
                    told.lines.append(fields)
        _, status = os.waitpid(self._pid, 0)
        if status:
            told.broken = f"it hung, or died, with status {status}; its last words: {told.lines[-1:]}"
        return told
