"""What the user of the long run does with directories: each result is checked against the files, or by sha256sum(1)."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from tests.soak.actor import Actor, uses
from tests.soak.client import PATIENCE
from tests.support.poll import until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

LARGEST: Final = 300_000
"""Bytes of a file."""
HOLE: Final = 47 * 4096
"""Bytes of the hole between two pages of data."""


@dataclass(frozen=True)
class Tree:
    """A directory ``path`` with ``files``, by their names in it; ``beside`` is there for more."""

    path: Path
    beside: Path
    files: dict[str, bytes]

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(map(len, self.files.values()))

    @property
    def data(self) -> int:
        """The bytes that are not in the hole, which compare and prefetch do not read."""
        return self.size - HOLE

    def check(self, copy: Path) -> None:
        """``copy`` has the same files, directories and links, with their modes, and nothing else."""
        assert _names(copy) == _names(self.path)
        for name in _names(self.path):
            ours, theirs = self.path / name, copy / name
            assert ours.lstat().st_mode == theirs.lstat().st_mode, name
            if ours.is_symlink():
                assert os.readlink(ours) == os.readlink(theirs), name
            elif ours.is_file():
                assert theirs.read_bytes() == self.files[name], name


def _names(directory: Path) -> list[str]:
    return sorted(str(each.relative_to(directory)) for each in directory.rglob("*"))


class Trees(Actor):
    """Copies, lists, and the page cache."""

    def of_trees(self) -> list[Callable[[], None]]:
        """The scenarios of this class."""
        return [
            self.copy_a_tree,
            self.sums_of_a_tree,
            self.cache_a_tree,
            self.tree_that_changes,
            self.resume_a_tree,
        ]

    @contextlib.contextmanager
    def tree(self, place: str = "") -> Iterator[Tree]:
        """A new one in tmpfs or on the disk, or where ``place`` says."""
        beside = self.area / (place or self.random.choice(["tmpfs", "disk"])) / self.who / self.new_name()
        path = beside / "tree"
        files: dict[str, bytes] = {}
        try:
            (path / "a b" / "deep").mkdir(parents=True)
            (path / "empty").mkdir(mode=0o750)
            for number in range(self.random.randint(4, 12)):
                name = self.random.choice(["", "a b/", "a b/deep/"]) + f"{number}{self.random.choice(['', 'é', ' x'])}"
                sizes = [1, 4096, self.random.randrange(1, LARGEST)] + [0] * (number > 1)  # scenarios change two files
                content = self.random.randbytes(self.random.choice(sizes))
                (path / name).write_bytes(content)
                (path / name).chmod(self.random.choice([0o600, 0o644, 0o755]))
                files[name] = content
            content = b"x" + bytes(HOLE + 2 * 4096 - 2) + b"y"
            with (path / "holes").open("wb") as stream:
                stream.write(b"x")
                stream.seek(len(content) - 1)
                stream.write(b"y")
            files["holes"] = content
            (path / "link").symlink_to("a b/deep")
            yield Tree(path, beside, files)
        finally:
            shutil.rmtree(beside)

    def options(self) -> str:
        return self.random.choice(["", f" max_threads={self.random.randint(1, 4)}", " nice=5", " rate_max=64M"])

    @uses("trees/copy", "trees/compare")
    def copy_a_tree(self) -> None:
        with self.tree() as tree:
            copy = tree.beside / "copy"
            text = self.run(f"copy source={tree.path} path={copy} digest=sha256sum{self.options()}")
            tree.check(copy)
            agree(text, copy, len(tree.files))
            spec = f"compare source={tree.path} path={copy}{self.options()}"
            same = {"files": len(_names(copy)), "differs": 0, "missing": 0, "kind": 0, "extra": 0}
            text = self.run(spec)
            assert counts(text, *same) == same, text
            assert tree.data <= counts(text, "bytes")["bytes"] <= tree.size, (tree.data, text)
            changed, removed = self.random.sample([name for name, content in tree.files.items() if content], 2)
            with (copy / changed).open("r+b") as stream:
                last = tree.files[changed][-1]
                stream.seek(-1, os.SEEK_END)
                stream.write(bytes([last ^ 1]))
            (copy / removed).unlink()
            (copy / "more").touch()
            text = self.run(spec)
            assert counts(text, "differs", "missing", "extra") == {"differs": 1, "missing": 1, "extra": 1}, text
            assert changed in text

    @uses("trees/checksum")
    def sums_of_a_tree(self) -> None:
        with self.tree() as tree:
            tool = self.random.choice(["sha256sum", "sha512sum", "b2sum", "sha1sum", "md5sum"])
            spec = f"checksum path={tree.path} algorithm={tool}"
            text = self.run(f"{spec}{self.options()}")
            agree(text, tree.path, len(tree.files), tool)
            manifest = tree.beside / "list"
            manifest.write_text(text)
            right = {"bytes": tree.size, "differ": 0, "missing": 0}
            assert counts(self.run(f"{spec} manifest={manifest}"), *right) == right
            changed, removed = self.random.sample([name for name, content in tree.files.items() if content], 2)
            path = tree.path / changed
            mode = path.stat().st_mode
            path.write_bytes(tree.files[changed][:-1])
            assert path.stat().st_mode == mode
            (tree.path / removed).unlink()
            text = self.run(f"{spec} manifest={manifest}{self.options()}", "failed")
            assert counts(text, "differ", "missing") == {"differ": 1, "missing": 1}, text

    @uses("trees/evict", "trees/survey", "trees/prefetch")
    def cache_a_tree(self) -> None:
        """Other processes may bring pages back or take them away, so only what must be is checked."""
        with self.tree("disk") as tree:
            count = len(tree.files)
            found = counts(self.run(f"evict path={tree.path}{self.options()}"), "files", "bytes", "skipped")
            assert found == {"files": count, "bytes": tree.size, "skipped": 0}
            found = counts(self.run(f"prefetch path={tree.path}{self.options()}"), "files", "bytes", "cached", "read")
            assert (found["files"], found["bytes"]) == (count, tree.size)
            assert found["cached"] + found["read"] == tree.data, found
            text = self.run(f"survey path={tree.path}{self.options()}")
            assert counts(text, "bytes") == {"bytes": tree.size}
            _, _, rows = text.partition("resident dirty total path\n")
            assert sorted(int(row.split(None, 3)[2]) for row in rows.splitlines()) == sorted(
                map(len, tree.files.values())
            )

    @contextlib.contextmanager
    def slow_copy(self, tree: Tree) -> Iterator[str]:
        """A copy at work that needs some seconds; its name. The copy is ``beside / "copy"``."""
        limits = f"max_threads=2 chunk=4096 rate_max={max(tree.size // 2, 4096)}"
        name = self.start(f"copy source={tree.path} path={tree.beside / 'copy'} {limits}")
        until(lambda: self.begun(name), "something is copied", deadline=2 * PATIENCE)
        yield name
        self.forget(name)

    @uses("trees/copy")
    def tree_that_changes(self) -> None:
        """Files change, go and come while they are copied: it ends, and the others are copied."""
        with self.tree() as tree, self.slow_copy(tree) as name:
            touched = self.random.sample(sorted(tree.files), 3)
            for each, change in zip(touched, ("cut", "longer", "gone"), strict=True):
                path = tree.path / each
                if change == "gone":
                    path.unlink()
                elif change == "cut":
                    os.truncate(path, 0)
                else:
                    with path.open("ab") as stream:
                        stream.write(bytes(5000))
            (tree.path / "new one").write_bytes(b"new")
            self.write(f"tasks/{name}/rate_max", "max")
            state = self.wait(name)
            assert state in ("done", "failed"), state
            self.counts[f"tree changed, {state}"] += 1
            if state == "failed":
                assert self.read(f"tasks/{name}/error").split()[0] in ("EBUSY", "ENOENT", "ESTALE", "EIO")
            for each in tree.files.keys() - set(touched):
                assert (tree.beside / "copy" / each).read_bytes() == tree.files[each], each

    @uses("trees/copy")
    def resume_a_tree(self) -> None:
        """A copy is cancelled, or its worker dies: what was copied stays, and the rest is copied."""
        with self.tree() as tree, self.slow_copy(tree) as name:
            how = self.random.choice(["cancel", "kill", "SIGKILL", "SIGTERM"])
            if how in ("cancel", "kill"):
                assert self.write(f"tasks/{name}/control", how) in ("ok", "EBUSY")
            elif pid := int(self.stat(name)["pid"]):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.Signals[how])
            state = self.wait(name)
            assert state in ("done", "cancelled", "interrupted"), (how, state)
            if state != "done":
                before = int(self.stat(name)["done"])
                self.put(f"tasks/{name}/rate_max", "max")
                self.started(self.write(f"tasks/{name}/control", "resume"), name)
                self.end(name)
                assert int(self.stat(name)["done"]) >= before
                self.counts["trees resumed"] += 1
            tree.check(tree.beside / "copy")


def counts(text: str, *names: str) -> dict[str, int]:
    """The lines NAME VALUE of ``names``."""
    found: dict[str, str] = {}
    for words in map(str.split, text.splitlines()):
        if len(words) == 2:
            found.setdefault(*words)  # the tables come below
    return {name: int(found[name]) for name in names}


def agree(text: str, directory: Path, files: int, tool: str = "sha256sum") -> None:
    """The list is that of the tool, which finds nothing wrong in ``directory``."""
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    assert len(lines) == files, text
    checked = subprocess.run(
        [tool, "--check", "--strict", "--quiet"],
        input="".join(f"{line}\n" for line in lines),
        cwd=directory,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (checked.returncode, checked.stdout) == (0, ""), checked
