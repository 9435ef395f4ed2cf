"""The tunables of ``debug/``, each declared once: name, range, default, and help."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from ktaskfs.errors import InvalidValue
from ktaskfs.units import parse_int, shown

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

PREFIX: Final = "ktask_"
"""The name of a tunable's file begins with this; the mount option and the configuration file leave it out."""


class Tunable(NamedTuple):
    """``debug/ktask_NAME``: a whole number from ``least`` to ``most``, or one of ``words``, counted from 0.

    ``top`` is a word for ``most``, if that means no limit.
    """

    name: str
    least: int
    most: int
    default: int
    help: str
    words: tuple[str, ...] = ()
    top: str = ""

    @property
    def file(self) -> str:
        return PREFIX + self.name

    def parse(self, text: str) -> int:
        """The value in ``text``; raises InvalidValue."""
        if self.words:
            if text not in self.words:
                raise InvalidValue(f"{self.file}: {shown(text)} is not one of {', '.join(self.words)}")
            return self.words.index(text)
        if self.top and text == self.top:
            return self.most
        try:
            return parse_int(text, least=self.least, most=self.most)
        except InvalidValue as error:
            raise InvalidValue(f"{self.file}: {error.message}") from error

    def format(self, value: int) -> str:
        """The text of ``value`` for ``parse``."""
        if self.words:
            return self.words[value]
        return self.top if self.top and value == self.most else str(value)


CGROUP: Final = Tunable(
    "cgroup", 0, 1, 0, "control groups of a task: its caller's or the daemon's", words=("caller", "daemon")
)
LABEL: Final = Tunable(
    "label", 0, 1, 0, "SELinux or AppArmor label of a task: its caller's or the daemon's", words=("caller", "ignore")
)
TUNABLES: Final = (
    Tunable("max_threads", 1, 2**31 - 1, 2**31 - 1, "maximum threads of one task", top="max"),
    Tunable("cpu_percent", 1, 100, 80, "percentage of the online CPUs for the helper threads of all tasks"),
    Tunable("nice", 0, 19, 19, "nice value of helper threads"),
    Tunable("load_bal_shift", 0, 16, 2, "chunks per thread, as a power of two"),
    Tunable("max_tasks", 1, 65536, 64, "maximum unfinished tasks of one user"),
    Tunable("max_queued", 0, 65536, 256, "maximum queued tasks (queue=1) of one user"),
    Tunable("keep_finished", 0, 1048576, 1024, "finished tasks that are kept; the user with the most loses the oldest"),
    CGROUP,
    LABEL,
)


class Settings:
    """The current values; ``observers`` are called after each change, on the same thread."""

    def __init__(self, values: Mapping[str, int]) -> None:
        self._values = {each.name: values.get(each.name, each.default) for each in TUNABLES}
        self.observers: list[Callable[[], object]] = []

    def __getitem__(self, name: str) -> int:
        return self._values[name]

    def set(self, tunable: Tunable, text: str) -> None:
        """Parse ``text`` and apply it; raises InvalidValue."""
        self.update({tunable.name: tunable.parse(text)})

    def update(self, values: Mapping[str, int]) -> None:
        """Apply checked ``values``, by name, together."""
        self._values.update(values)
        for observer in self.observers:
            observer()
