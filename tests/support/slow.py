"""A task that stays at work for as long as a test wants it to."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.support.poll import until

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.daemon import Mount
    from tests.support.users import User

SIZE = 64 << 20


def start_slow(
    mount: Mount, directory: Path, name: str, *, rate: str = "64K", chunk: str = "4K", user: User | None = None
) -> Path:
    """Start the task ``name``, which clears a new file at ``rate`` in small chunks; returns the file when the task has
    done a chunk.

    On a busy machine a start is answered earlier. A resume of a task that has done nothing begins anew, with any file.
    """
    file = directory / f"slow-{name}"
    with file.open("wb") as stream:
        stream.truncate(SIZE)
    file.chmod(0o666)
    spec = f"clear path={file} name={name} rate_max={rate} chunk={chunk}"
    assert mount.write("tasks/control", spec, user=user) == (0, None), mount.read("info/last_cmd_status", user=user)
    until(lambda: mount.read(f"tasks/{name}/progress", user=user).split()[0] != "0", f"{name} works")
    return file


def stop(mount: Mount, *names: str, user: User | None = None) -> None:
    """Cancel tasks and follow each to its end."""
    for name in names:
        assert mount.write(f"tasks/{name}/control", "cancel", user=user) == (0, None)
        assert mount.read(f"tasks/{name}/wait", user=user).splitlines()[-1] == "cancelled"
