"""A small tree that uses all of the node library, mounted by a separate process.

Usage: example.py MOUNTPOINT[=/dev/fd/N] REPORT [OPTION...]; writes the remaining objects at the end to REPORT, as JSON.
"""

from __future__ import annotations

import gc
import inspect
import json
import signal
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import trio

from ktaskfs.errors import InvalidValue, NameTaken, WrongState
from ktaskfs.fuse import session as session_module
from ktaskfs.fuse.operations import TreeOperations
from ktaskfs.fuse.session import Session, mounted
from ktaskfs.vfs import (
    BRIEFLY,
    ROOT_INO,
    Attributes,
    Caller,
    Change,
    Directory,
    InodeNumbers,
    StaticDirectory,
    Stream,
    StreamFile,
    TextFile,
)
from ktaskfs.vfs.stream import PATIENCE
from tests.fuse.renumbered import Renumbered

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ktaskfs.vfs import Inode
    from ktaskfs.vfs.text import Write

MANY = 10_000


class Silence(Stream):
    """Never gives anything."""

    def __init__(self, tree: ExampleTree) -> None:
        self._tree = tree
        tree.streams += 1

    async def next_chunk(self) -> bytes:
        await trio.sleep_forever()
        raise AssertionError

    def ready(self) -> bool:
        return False

    def close(self) -> None:
        self._tree.streams -= 1


class Lines(Stream):
    """Three lines in two chunks, then the end."""

    def __init__(self, tree: ExampleTree) -> None:
        self._tree = tree
        self._lines = [b"one\n", b"two\nthree\n"]
        tree.streams += 1

    async def next_chunk(self) -> bytes:
        await trio.lowlevel.checkpoint()
        return self._lines.pop(0) if self._lines else b""

    def close(self) -> None:
        self._tree.streams -= 1


class Ticks(Stream):
    """A line for each change of ``number``, from the moment of opening; an empty line after a second without one."""

    def __init__(self, tree: ExampleTree) -> None:
        self._tree = tree
        self._told = tree.change.count
        tree.streams += 1

    async def next_chunk(self) -> bytes:
        with trio.move_on_after(1):
            while not self.ready():
                changed = trio.Event()
                self._tree.change.await_next(self, changed.set)
                await changed.wait()
        if not self.ready():
            return b"\n"
        self._told = self._tree.change.count
        return f"{self._tree.number}\n".encode()

    def ready(self) -> bool:
        return self._told != self._tree.change.count

    def close(self) -> None:
        self._tree.change.forget(self)
        self._tree.streams -= 1


class Slow(Stream):
    """A line after more than the patience with a stream, then the end."""

    def __init__(self, tree: ExampleTree) -> None:
        self._tree = tree
        self._due = trio.current_time() + 1.2 * PATIENCE
        self._lines = [b"at last\n"]
        tree.streams += 1

    async def next_chunk(self) -> bytes:
        await trio.sleep_until(self._due)
        return self._lines.pop(0) if self._lines else b""

    def ready(self) -> bool:
        return trio.current_time() >= self._due

    def close(self) -> None:
        self._tree.streams -= 1


class Items(Directory):
    """Directories made by mkdir and removed by rmdir, each with a file ``value``; a caller sees only his own."""

    def __init__(self, tree: ExampleTree) -> None:
        super().__init__(tree.numbers.take(), Attributes(0o1777))
        self._tree = tree
        self._items: dict[str, tuple[int, StaticDirectory]] = {}

    def lookup(self, name: str, caller: Caller) -> Inode | None:
        owner, item = self._items.get(name, (None, None))
        return item if caller.uid in (0, owner) else None

    def names(self, caller: Caller) -> Sequence[str]:
        return [name for name, (owner, _) in self._items.items() if caller.uid in (0, owner)]

    def find(self, ino: int) -> Inode | None:
        everything = (inode for _, item in self._items.values() for inode in (item, *item.children.values()))
        return next((inode for inode in everything if inode.ino == ino), None)

    async def mkdir(self, name: str, caller: Caller) -> Directory:
        if name in self._items:
            raise NameTaken(name)
        numbers = self._tree.numbers
        value = TextFile(numbers.take(), Attributes(0o440, caller.uid, caller.gid), lambda caller: f"{name}\n")
        item = StaticDirectory(numbers.take(), Attributes(0o755, caller.uid, caller.gid), {"value": value})
        self._items[name] = (caller.uid, item)
        return item

    async def rmdir(self, name: str, caller: Caller) -> None:
        if name.startswith("busy"):
            raise WrongState(name)
        del self._items[name]


class Many(Directory):
    """Ten thousand directories with a file each, made on demand."""

    entry_timeout = BRIEFLY

    def __init__(self, tree: ExampleTree) -> None:
        super().__init__(tree.numbers.take(), Attributes(0o755))
        self._first = tree.numbers.take(2 * MANY)
        self._attributes_of_file = Attributes(0o444)

    def _child(self, number: int) -> StaticDirectory:
        ino = self._first + 2 * number
        value = TextFile(ino + 1, self._attributes_of_file, lambda caller: f"{number}\n")
        return StaticDirectory(ino, self._attributes, {"value": value})

    def lookup(self, name: str, caller: Caller) -> Inode | None:
        number = int(name) if name.isdigit() else MANY
        return self._child(number) if number < MANY else None

    def find(self, ino: int) -> Inode | None:
        number, is_value = divmod(ino - self._first, 2)
        if not 0 <= number < MANY:
            return None
        child = self._child(number)
        return child.children["value"] if is_value else child

    def names(self, caller: Caller) -> Sequence[str]:
        return [str(number) for number in range(MANY)]


class ExampleTree:
    """The values that the files show and change."""

    def __init__(self, session: Callable[[], Session]) -> None:
        self._session = session
        self.numbers = InodeNumbers()
        self.change = Change()
        self.number = 7
        self.sized = ""
        self.commands: list[str] = []
        self.requests: Counter[str] = Counter()
        self.streams = 0
        self.renders = 0
        self.root = StaticDirectory(ROOT_INO, Attributes(0o755), self._children())

    def _file(
        self, mode: int, render: Callable[[Caller], str], write: Write | None = None, change: Change | None = None
    ) -> TextFile:
        return TextFile(self.numbers.take(), Attributes(mode), render, write, change=change)

    def _children(self) -> dict[str, Inode]:
        return {
            "hello": self._file(0o444, lambda caller: "hello, world\n"),
            "long": self._file(0o444, lambda caller: "".join(f"{n:07}\n" for n in range(40_000))),
            "empty": self._file(0o444, lambda caller: ""),
            "secret": self._file(0o440, lambda caller: "secret\n"),
            "whoami": self._file(0o444, lambda caller: f"{caller.uid} {caller.gid} {caller.pid}\n"),
            "renders": self._file(0o444, self._count_render),
            "number": self._file(0o644, lambda caller: f"{self.number}\n", write=self._set, change=self.change),
            "sized": self._file(0o666, lambda caller: self.sized, write=self._set_size),
            "commands": self._file(0o666, lambda caller: "\n".join(self.commands), write=self._command),
            "counts": self._file(0o444, self._counts),
            "requests": self._file(0o644, self._requests, write=self._clear_requests),
            "dir": StaticDirectory(
                self.numbers.take(),
                Attributes(0o755),
                {
                    "inner": self._file(0o444, lambda caller: "inner\n"),
                },
            ),
            "faults": StaticDirectory(
                self.numbers.take(),
                Attributes(0o755),
                {
                    "broken": self._file(0o444, self._break),
                },
            ),
            "items": Items(self),
            "many": Many(self),
            "renumbered": Renumbered(self.numbers.take()),
            "lines": StreamFile(self.numbers.take(), Attributes(0o444), lambda caller: Lines(self)),
            "ticks": StreamFile(self.numbers.take(), Attributes(0o444), lambda caller: Ticks(self), change=self.change),
            "slow": StreamFile(self.numbers.take(), Attributes(0o444), lambda caller: Slow(self)),
            "silence": StreamFile(self.numbers.take(), Attributes(0o444), lambda caller: Silence(self)),
        }

    def _count_render(self, caller: Caller) -> str:
        self.renders += 1
        return f"{self.renders}\n"

    def _break(self, caller: Caller) -> str:
        raise ZeroDivisionError("on purpose")

    async def _set(self, caller: Caller, text: str) -> None:
        if not text.isdigit():
            raise InvalidValue(text)
        self.number = int(text)
        self.change.notify()

    async def _set_size(self, caller: Caller, text: str) -> None:
        """``SIZE FILL``, or ``text SIZE FILL``, which is in lines."""
        *lines, size, fill = text.split()
        line = fill * 79 + "\n" if lines else fill
        self.sized = (line * int(size))[: int(size)]
        if lines and self.sized:
            self.sized = self.sized[:-1] + "\n"

    async def _command(self, caller: Caller, text: str) -> str:
        self.commands.append(text)
        return f"{len(self.commands)}:{len(text)}\n"

    def _requests(self, caller: Caller) -> str:
        return json.dumps(self.requests)

    async def _clear_requests(self, caller: Caller, text: str) -> None:
        self.requests.clear()

    def _counts(self, caller: Caller) -> str:
        gc.collect()
        return json.dumps(self.leftovers() | {"blocks": sys.getallocatedblocks()})

    def leftovers(self) -> dict[str, int]:
        session = self._session()
        return {
            "handles": session.open_handles,
            "streams": self.streams,
            "waiting": self.change.waiting,
        }


async def serve(session: Session, earlier: str, memory: Path | None) -> None:
    """Serve until the mount is gone, or SIGTERM; after an earlier server, whose state is in ``memory``."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_terminate_on_signal, session)
        await session.serve(earlier, memory.write_text if memory is not None else str)
        nursery.cancel_scope.cancel()


async def _terminate_on_signal(session: Session) -> None:
    with trio.open_signal_receiver(signal.SIGTERM) as signals:
        async for _ in signals:
            session.terminate()


def _count_requests(counter: Counter[str]) -> None:
    """pyfuse3 looks a handler up at each request for it."""
    handlers = {name for name, _ in inspect.getmembers(TreeOperations, inspect.iscoroutinefunction)}
    handlers -= {name for name in handlers if name.startswith("_")}

    class Counting(TreeOperations):
        def __getattribute__(self, name: str) -> Any:
            if name in handlers:
                counter[name] += 1
            return super().__getattribute__(name)

    vars(session_module)["TreeOperations"] = Counting


def main(mountpoint: str, report: str, *options: str) -> None:
    held: list[Session] = []
    tree = ExampleTree(lambda: held[0])
    _count_requests(tree.requests)
    path, _, device = mountpoint.partition("=")
    with mounted(tree.root, path, name="example", options=options, device=device or None) as session:
        held.append(session)
        memory = Path(f"{report}.memory") if device else None
        earlier = memory.read_text() if memory is not None and memory.exists() else ""
        trio.run(serve, session, earlier, memory)
    Path(report).write_text(json.dumps(tree.leftovers()))


if __name__ == "__main__":
    main(*sys.argv[1:])
