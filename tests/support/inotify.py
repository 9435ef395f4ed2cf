"""inotifywait(1) of inotify-tools on files of a mount."""

from __future__ import annotations

import subprocess
from contextlib import contextmanager
from typing import TYPE_CHECKING

from tests.support.poll import DEADLINE, until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.daemon import Mount
    from tests.support.users import User


class Watch:
    """The output of a running inotifywait(1) until now."""

    def __init__(self, output: Path) -> None:
        self._output = output

    @property
    def text(self) -> str:
        """All that it has printed: FILE:EVENT, a line for each."""
        return self._output.read_text()

    @property
    def events(self) -> set[str]:
        return set(self.text.split())

    def until(self, *events: str) -> None:
        """Return when all of ``events`` have come."""
        until(lambda: self.events >= set(events), f"inotifywait prints {events}")


@contextmanager
def watching(mount: Mount, output: Path, *files: str, user: User | None = None) -> Iterator[Watch]:
    """inotifywait(1) of ``user`` on ``files``, once it watches them; it prints into the new file ``output``."""
    said = output.with_suffix(".said")
    with output.open("wb") as out, said.open("wb") as err:
        process = subprocess.Popen(
            ["inotifywait", "--monitor", "--format", "%w:%e", *files],
            cwd=mount.path,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            user=None if user is None else user.uid,
            group=None if user is None else user.gid,
            extra_groups=None if user is None else [],
        )
    try:
        until(lambda: "Watches established." in said.read_text(), "inotifywait watches")
        yield Watch(output)
        assert process.poll() is None, said.read_text()
    finally:
        process.terminate()
        process.wait(DEADLINE)
