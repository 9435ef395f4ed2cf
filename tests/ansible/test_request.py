"""The module task in each state, on a real mount and without Ansible. A second call finds nothing to do."""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Final

import pytest

from ktaskfs.tasks.patience import VARIABLE
from tests.support import filesystems
from tests.support.daemon import Mount
from tests.support.filesystems import page_sizes
from tests.support.hugepages import reserved
from tests.support.leftovers import none_left
from tests.support.poll import DEADLINE, until
from tests.support.shell import shell

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.ansible.conftest import Utilities
    from tests.conftest import MountMaker
    from tests.support.users import User

    Make = Callable[..., Any]

MIB: Final = 1 << 20


@pytest.fixture(scope="module")
def daemon(root: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mount]:
    """One daemon for all tests of this file."""
    directory = tmp_path_factory.mktemp("daemon")
    for name in ("mount", "state"):
        (directory / name).mkdir()
    with none_left(), pytest.MonkeyPatch.context() as patch:
        patch.setenv(VARIABLE, str(DEADLINE))  # as the fixture ``patient``
        mount = Mount(directory / "mount", statedir=directory / "state", log=directory / "log")
        yield mount
        mount.close()


@pytest.fixture
def memory(root: None, area: Path) -> Iterator[Path]:
    """An empty tmpfs."""
    with filesystems.tmpfs(area / "tmpfs", 64 << 20, "mode=1777") as path:
        yield path


@pytest.fixture
def mounted(daemon: Mount, memory: Path) -> Iterator[Mount]:
    """The daemon without tasks. At the end no task uses the memory."""
    yield daemon
    daemon.shell("echo cancel >tasks/control; for task in tasks/*/; do cat $task/wait; rmdir $task; done")
    assert daemon.shell("ls tasks/").out == "control\n"


@pytest.fixture
def make(utilities: Utilities, mounted: Mount) -> Make:
    """``make(state, op, timeout=, rerun=, name=, **params)`` returns the request of one call of the module."""

    def request(
        state: str,
        op: str | None = None,
        *,
        name: str = "t",
        timeout: float = DEADLINE,
        rerun: bool = False,
        **params: Any,
    ) -> Any:
        wanted = utilities.request.Wanted(name=name, state=state, op=op, params=params, rerun=rerun)
        end = time.monotonic() + timeout
        return utilities.request.Request(utilities.mounted.Mounted(str(mounted.path)), wanted, end)

    return request


@pytest.fixture
def settled(make: Make) -> Make:
    """Carries out a request, checks that a second one does nothing, and returns the first one's actions."""

    def carry_out(*words: Any, **params: Any) -> list[str]:
        request = make(*words, **params)
        actions: list[str] = request.carry_out()
        request.settle()
        if not params.get("rerun"):
            again = make(*words, **params)
            assert again.carry_out() == []
            again.settle()
        return actions

    return carry_out


def slow(path: Path, **more: Any) -> dict[str, Any]:
    """Returns parameters of a fallocate that runs until somebody changes its rate."""
    return {"path": str(path), "length": "4M", "chunk": "64K", "rate_max": "16K", **more}


def created(mounted: Mount, name: str = "t") -> str:
    return mounted.shell("jq .created_usec tasks/$1/stat.json", name).out


def test_done_once(settled: Make, mounted: Mount, memory: Path) -> None:
    spec = {"path": memory / "a", "length": "1M"}
    assert settled("done", "fallocate", **spec) == ["start"]
    before = created(mounted)
    for length in (MIB, "1024K", "0x100000", "1MiB"):
        assert settled("done", "fallocate", path=f"{memory}//a", length=length, max_threads=7) == []
    assert created(mounted) == before
    assert settled("done", "fallocate", rerun=True, **spec) == ["replace"]
    assert created(mounted) != before


def test_other_work_takes_the_place_of_an_ended_task(settled: Make, mounted: Mount, memory: Path) -> None:
    assert settled("done", "fallocate", path=memory / "a", length="1M", offset=4096) == ["start"]
    assert settled("done", "fallocate", path=memory / "a", length="1M") == ["replace"], "a default that is not given"
    assert settled("done", "fallocate", path=memory / "a", length="2M") == ["replace"]
    assert settled("done", "checksum", path=memory / "a") == ["replace"]
    assert settled("done", "checksum", path=memory / "a", algorithm="xxh3") == ["replace"]
    assert mounted.read("tasks/t/result").startswith("xxh3")


def test_other_work_does_not_take_the_place_of_a_task_at_work(
    make: Make, settled: Make, utilities: Utilities, mounted: Mount, memory: Path
) -> None:
    assert settled("started", "fallocate", **slow(memory / "a")) == ["start"]
    for other in ({"length": "8M"}, {"path": memory / "b"}, {"undo": True}):
        with pytest.raises(utilities.request.Failed, match="is at work, and does something else"):
            make("done", "fallocate", **{**slow(memory / "a"), **other}).carry_out()
    assert mounted.read("tasks/t/state") == "running\n"
    assert settled("started", "fallocate", **slow(memory / "a", rate_max="max")) == ["set"]
    assert settled("done", "fallocate", **slow(memory / "a", rate_max="max")) == []


def test_a_paused_task_goes_on(settled: Make, mounted: Mount, memory: Path) -> None:
    settled("started", "fallocate", **slow(memory / "a"))
    assert mounted.write("tasks/t/control", "pause") == (0, None)
    assert settled("done", "fallocate", **slow(memory / "a", rate_max="max")) == ["resume"]


def test_cancelled_and_the_rest(settled: Make, mounted: Mount, memory: Path) -> None:
    assert settled("cancelled") == []
    settled("started", "fallocate", **slow(memory / "a"))
    before = created(mounted)
    assert settled("cancelled") == ["cancel"]
    assert mounted.read("tasks/t/state") == "cancelled\n"
    assert settled("done", "fallocate", **slow(memory / "a", rate_max="max")) == ["resume"]
    assert created(mounted) == before
    assert settled("cancelled") == []
    assert mounted.read("tasks/t/state") == "done\n"


@pytest.mark.parametrize("change", ["mv new a", "rm a", "truncate --size=0 a"])
def test_the_rest_is_not_enough_if_the_file_has_changed(
    make: Make, settled: Make, mounted: Mount, memory: Path, change: str
) -> None:
    """The daemon refuses to resume (ESTALE, ENOENT, ENXIO), so the module starts the whole work again."""
    settled("started", "fallocate", **slow(memory / "a"))
    until(lambda: not mounted.read("tasks/t/progress").startswith("0 /"), "a part is done")
    settled("cancelled")
    (memory / "new").touch()
    assert shell(f"cd {memory}; {change}").status == 0
    before = created(mounted)
    assert settled("done", "fallocate", **slow(memory / "a", rate_max="max")) == ["resume"]
    assert created(mounted) != before
    assert (memory / "a").stat().st_blocks * 512 == 4 * MIB


def test_two_calls_at_the_same_time_start_one_task(make: Make, mounted: Mount, memory: Path) -> None:
    def call(_: int) -> tuple[list[str], str]:
        request = make("done", "fallocate", path=memory / "a", length="1M")
        return request.carry_out(), request.settle()

    with ThreadPoolExecutor(8) as executor:
        answers = list(executor.map(call, range(8)))
    assert sorted(answers) == [([], "done")] * 7 + [(["start"], "done")]


def test_absent(settled: Make, mounted: Mount, memory: Path) -> None:
    assert settled("absent") == []
    settled("started", "fallocate", **slow(memory / "a"))
    assert settled("absent") == ["cancel", "forget"]
    assert not (mounted.path / "tasks/t").exists()
    settled("done", "fallocate", path=memory / "a", length="1M")
    assert settled("absent") == ["forget"]
    assert (memory / "a").stat().st_size == 4 * MIB
    mounted.shell("mkdir tasks/t")
    assert settled("absent") == ["forget"]


def test_memory_that_is_missing_is_allocated_again(settled: Make, memory: Path) -> None:
    file, spec = memory / "a", {"path": memory / "a", "length": "1M"}
    settled("done", "fallocate", **spec)
    file.unlink()
    assert settled("done", "fallocate", **spec) == ["replace"]
    os.truncate(file, 4096)
    assert settled("done", "fallocate", **spec) == ["replace"]
    assert settled("done", "free", name="hole", path=file, length="256K") == ["start"]
    assert settled("done", "fallocate", **spec) == ["replace"]
    assert file.stat().st_blocks * 512 == MIB
    assert settled("done", "fallocate", **spec) == []


def test_a_copy_that_is_missing_is_made_again(settled: Make, memory: Path) -> None:
    source, file = memory / "source", memory / "copy"
    source.write_bytes(os.urandom(MIB))
    spec = {"source": source, "path": file}
    assert settled("done", "copy", **spec) == ["start"]
    file.unlink()
    assert settled("done", "copy", **spec) == ["replace"]
    os.truncate(file, 4096)
    assert settled("done", "copy", **spec) == ["replace"]
    new = memory / "new"
    new.write_bytes(os.urandom(MIB))
    new.replace(source)  # as rsync and package managers do
    assert settled("done", "copy", **spec) == ["replace"]
    assert file.read_bytes() == source.read_bytes()


def test_a_directory_is_copied_once(settled: Make, memory: Path) -> None:
    (memory / "tree").mkdir()
    (memory / "tree/a").write_bytes(b"a")
    assert settled("done", "copy", source=memory / "tree", path=memory / "copy") == ["start"]
    assert settled("done", "checksum", name="sums", path=memory / "copy") == ["start"]


def test_another_file_is_scrubbed_again_and_none_is_not(settled: Make, memory: Path) -> None:
    file = memory / "a"
    file.write_bytes(b"secret")
    assert settled("done", "clear", path=file) == ["start"]
    assert settled("done", "free", name="gone", path=file, unlink=True) == ["start"]
    assert settled("done", "clear", path=file) == []
    file.write_bytes(b"secret")
    assert settled("done", "clear", path=file) == ["replace"]
    assert file.read_bytes() == bytes(6)
    assert settled("done", "free", name="gone", path=file, unlink=True) == ["replace"]


def test_a_failure_is_told_and_tried_again(
    make: Make, settled: Make, utilities: Utilities, mounted: Mount, memory: Path
) -> None:
    file = memory / "a"
    file.write_bytes(bytes(8192))
    spec = {"path": file, "pattern": "ff"}
    for action in ("start", "resume"):
        request = make("done", "verify", **spec)
        assert request.carry_out() == [action]
        with pytest.raises(utilities.request.Failed, match=r"the task t is failed: \w+ at 0: "):
            request.settle()
    file.write_bytes(b"\xff" * 8192)
    assert settled("done", "verify", **spec) == ["resume"]


def test_a_refusal_has_the_words_of_the_daemon(make: Make, utilities: Utilities, mounted: Mount, memory: Path) -> None:
    table: dict[str, tuple[str, dict[str, Any], str]] = {
        "ENOENT": ("clear", {"path": memory / "none"}, "none: No such file"),
        "ENOSPC": ("fallocate", {"path": memory / "a", "length": "1G"}, "are missing, but "),
        "EINVAL": ("fallocate", {"path": memory / "a", "length": "1G", "lenght": 1}, "lenght"),
    }
    for name, (op, params, words) in table.items():
        with pytest.raises(utilities.mounted.Refused, match=words) as refused:
            make("done", op, **params).carry_out()
        assert refused.value.name == name
    with pytest.raises(utilities.mounted.Refused, match="frobnicate"):
        make("done", "frobnicate").carry_out()
    assert mounted.shell("ls tasks/").out == "control\n"


def test_the_timeout_leaves_the_task_at_work(
    make: Make, settled: Make, utilities: Utilities, mounted: Mount, memory: Path
) -> None:
    settled("started", "fallocate", **slow(memory / "a"))
    with pytest.raises(utilities.request.Failed, match="is still running at .* it goes on"):
        make("done", "fallocate", timeout=0.2, **slow(memory / "a")).settle()
    assert mounted.read("tasks/t/state") == "running\n"


def test_a_plan_touches_nothing(make: Make, utilities: Utilities, mounted: Mount, memory: Path) -> None:
    request = make("done", "fallocate", path=memory / "a", length="1M", queue=True)
    assert request.action("absent") == "start"
    plan = request.plan()
    assert (plan["creates"], plan["allocates"], plan["total"]) == (str(memory / "a"), str(MIB), str(MIB))
    assert os.listdir(memory) == []
    assert mounted.shell("ls tasks/").out == "control\n"
    with pytest.raises(utilities.mounted.Refused, match="are missing, but "):
        make("done", "fallocate", path=memory / "a", length="1G").plan()


def test_a_planned_task_is_no_done_one(settled: Make, mounted: Mount, memory: Path) -> None:
    assert mounted.write("tasks/control", f"fallocate path={memory}/a length=1M name=t plan=1") == (0, None)
    until(lambda: mounted.read("tasks/t/state") == "planned\n", "it is planned")
    assert settled("done", "fallocate", path=memory / "a", length="1M") == ["replace"]


def test_the_pool_is_as_asked(settled: Make, mounted: Mount) -> None:
    """The request asks for the present size of the pool, so it reserves nothing."""
    with reserved(page_sizes()[0], 0) as pool:  # no other test adds pages meanwhile, which the request would take off
        assert settled("done", "reserve", size=pool.page_size, pages=pool.total) == ["start"]


def test_a_daemon_that_is_restarted_is_waited_for(
    utilities: Utilities, mount_maker: MountMaker, area: Path, memory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(utilities.mounted, "PATIENCE", 2 * DEADLINE)
    mount = mount_maker(statedir=area / "kept")
    mounted = utilities.mounted.Mounted(str(mount.path))
    mounted.require()
    wanted = utilities.request.Wanted(name="t", state="done", op="fallocate", params=slow(memory / "a"), rerun=False)
    request = utilities.request.Request(mounted, wanted, time.monotonic() + DEADLINE)
    assert request.carry_out() == ["start"]
    with ThreadPoolExecutor(1) as executor:
        settled = executor.submit(request.settle)
        mount.process.kill()  # its mount stays, and is dead
        mount.process.wait()
        again = Mount(mount.path, statedir=area / "kept", log=area / "again")
        try:
            assert again.write("tasks/t/rate_max", "max") == (0, None)
            assert settled.result(2 * DEADLINE) == "done"
        finally:
            again.close()
    mount.kill()
    gone = utilities.mounted.Mounted(str(mount.path))
    with pytest.raises(utilities.mounted.NotMounted, match="no ktaskfs is mounted on"):
        gone.require()


def test_the_task_of_another_user_is_not_the_wanted_one(
    utilities: Utilities, mount_maker: MountMaker, memory: Path, two_users: tuple[User, User]
) -> None:
    mount, user = mount_maker("mode=0666"), two_users[0]
    (memory / "file").write_bytes(bytes(4096))
    (memory / "file").chmod(0o666)
    assert mount.write("tasks/control", f"clear path={memory}/file name=t", user=user) == (0, None)
    mount.cat("tasks/t/wait", user=user)
    params = {"path": str(memory / "file")}
    for state in ("done", "started"):
        wanted = utilities.request.Wanted(name="t", state=state, op="clear", params=params, rerun=False)
        request = utilities.request.Request(utilities.mounted.Mounted(str(mount.path)), wanted, time.monotonic())
        with pytest.raises(utilities.request.Failed, match="another user's"):
            request.carry_out()
