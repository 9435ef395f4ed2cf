"""Programs that follow a stream end with it, and not earlier."""

from __future__ import annotations

import concurrent.futures
import os
import subprocess
from typing import TYPE_CHECKING, Final

import pytest

from tests.clients.readers import page_readers, stream_readers
from tests.support.poll import DEADLINE, until
from tests.support.slow import start_slow, stop

if TYPE_CHECKING:
    from pathlib import Path

    from tests.clients.newest import Utilities
    from tests.support.daemon import Mount


def test_every_program_waits(mounted: Mount, newest: Utilities, memory: Path, area: Path) -> None:
    """Also beside another program, and repeatedly: the kernel's cached pages of the stream are gone."""
    start_slow(mounted, memory, "slow")
    wait = str(mounted.path / "tasks/slow/wait")
    readers: dict[str, subprocess.Popen[str]] = {}

    def start(programs: dict[str, str]) -> None:
        for program, command in programs.items():
            place = str(area / f"copy {len(readers)}")
            readers[f"{program} {len(readers)}"] = subprocess.Popen(
                ["bash", "-c", command, "bash", wait, place], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
            )
        until(all_follow, "all have opened the stream")

    def all_follow() -> bool:
        ended = {name: reader.communicate() for name, reader in readers.items() if reader.poll() is not None}
        assert ended == {}  # what these have read says why
        return _streams(mounted) == len(readers)

    start(page_readers())
    for _ in range(2):
        start(stream_readers(newest))
    followed = mounted.shell("head -n 3 tasks/slow/wait | wc -l")  # lines that all have got, or lost
    assert (followed.out, _streams(mounted)) == ("3\n", len(readers))
    stop(mounted, "slow")
    for program, reader in readers.items():
        out, err = reader.communicate(timeout=DEADLINE)
        assert (out.splitlines()[-1:], reader.returncode, err) == (["cancelled"], 0, ""), program


def _streams(mount: Mount) -> int:
    links = (f"/proc/{pid}/fd" for pid in os.listdir("/proc") if pid.isdigit())
    found = 0
    for directory in links:
        try:
            names = [os.readlink(f"{directory}/{name}") for name in os.listdir(directory)]
        except OSError:
            continue
        found += any(name.startswith(str(mount.path)) and name.endswith("/wait") for name in names)
    return found


@pytest.mark.parametrize("tail", ["installed", "newest", "uutils", "busybox"])
def test_the_recipe_tells_how_the_task_ended(mounted: Mount, newest: Utilities, memory: Path, tail: str) -> None:
    """The last line is the state; tail's own status does not depend on it."""
    program = {
        "installed": "tail",
        "newest": newest.gnu("tail"),
        "uutils": newest.uutils("tail"),
        "busybox": newest.busybox("tail"),
    }[tail]
    (memory / "f").write_bytes(b"x")
    recipe = f'[ "$({program} -n 1 tasks/$1/wait)" = done ] && echo ready'
    mounted.shell(f"echo 'clear path={memory}/f name=good' > tasks/control")
    assert mounted.shell(recipe, "good").out == "ready\n"
    start_slow(mounted, memory, "bad")
    mounted.shell("echo cancel > tasks/bad/control")
    assert mounted.shell(recipe, "bad").out == ""


ONCE: Final = """
coproc follower {{ exec {} tasks/t/state; }}
read -r -u "${{follower[0]}}" && echo "$REPLY"
! read -r -t 5 -u "${{follower[0]}}" || echo "$REPLY again"
kill $follower_PID
"""
"""Prints the first line that a program gets, and what comes in five seconds after it."""


def test_following_a_text_and_a_stream(mounted: Mount, newest: Utilities, memory: Path, area: Path) -> None:
    """tail -f and -F of ``events`` pass each line on; of a text they show it once."""
    (memory / "f").write_bytes(b"x")
    follow = f"""
        timeout {2 * DEADLINE:.0f} stdbuf -o0 $1 events > "$2" & follower=$!
        until [ -s "$2" ]; do kill -0 $follower || exit 1; done
        echo "clear path=$3" > tasks/control
        until grep -q 'running done' "$2"; do kill -0 $follower || exit 1; done
        kill $follower
    """
    for number, command in enumerate(("tail -n +1 -f", "tail -n +1 -F")):
        outcome = mounted.shell(follow, command, str(area / f"followed {number}"), f"{memory}/f")
        assert outcome.status == 0, command
    mounted.shell(f"echo 'clear path={memory}/f name=t' > tasks/control; cat tasks/t/wait")
    commands = ("tail -f", "tail -F", f"{newest.gnu('tail')} -f", f"{newest.uutils('tail')} -f")
    with concurrent.futures.ThreadPoolExecutor(len(commands)) as at_once:
        outcomes = at_once.map(lambda command: mounted.shell(ONCE.format(command)), commands)
    assert [(each.out, each.err) for each in outcomes] == [("done\n", "")] * len(commands)


def test_streams_are_passed_by_programs_that_do_not_wait(mounted: Mount, memory: Path, area: Path) -> None:
    start_slow(mounted, memory, "slow")
    try:
        outcome = mounted.shell(f"tar -c -f {area}/all.tar . && tar -t -f {area}/all.tar | grep -cE '/(wait|events)$'")
        assert (outcome.status, outcome.out, outcome.err) == (0, "2\n", "")
    finally:
        stop(mounted, "slow")
