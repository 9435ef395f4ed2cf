"""A task has its caller's control groups: its memory is charged there, and the limits hold."""

from __future__ import annotations

import contextlib
import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

from ktaskfs.units import parse_cpulist
from tests.attacks.callers import wait_for_worker
from tests.support import filesystems, hugepages
from tests.support.cgroups import ENTER, LEAVE, distinct, group, groups_of, hierarchies, own_group
from tests.support.poll import until
from tests.support.refusals import Refusal, refusal
from tests.support.shell import shell

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.conftest import MountMaker
    from tests.support.daemon import Mount
    from tests.support.shell import Outcome
    from tests.support.users import User

pytestmark = pytest.mark.usefixtures("root")

MIB = 1 << 20
PAGE = 2 * MIB
START = 'enter "$2"\necho "$1" > tasks/control\n'


@pytest.fixture
def huge(area: Path) -> Iterator[Path]:
    """A hugetlbfs with pages of 2 MiB, of which there are 64 free."""
    with hugepages.reserved(PAGE, 64), filesystems.hugetlbfs(area / "huge", PAGE) as path:
        yield path


def start_in(mount: Mount, where: Path, spec: str) -> Outcome:
    """``spec`` written to tasks/control by a process in the group ``where``."""
    return mount.shell(ENTER + START, spec, str(where))


def refused_in(mount: Mount, where: Path, spec: str, script: str = ENTER + START) -> Refusal:
    """How a start is refused to a process in the group ``where``; ``script`` has the spec as $1, the group as $2."""
    return refusal(mount, lambda named: mount.shell(script, named, str(where)), spec)


def test_the_worker_is_in_all_its_callers_groups(mounted: Mount, memory: Path) -> None:
    with contextlib.ExitStack() as stack:
        groups = [str(stack.enter_context(group(names[0]))) for names, _ in hierarchies()]
        script = ENTER + 'enter "${@:2}"\necho "$1" > tasks/control; cat /proc/$$/cgroup\n'
        caller = mounted.shell(script, f"fallocate name=t path={memory}/f length=1M chunk=4096 rate_max=1", *groups)
        assert caller.status == 0, caller.err
        assert groups_of(wait_for_worker(mounted, "t")) == caller.out.splitlines() != groups_of("self")
        mounted.write("tasks/t/control", "cancel")
        assert mounted.cat("tasks/t/wait").status == 0
    assert groups_of(mounted.pid) == groups_of("self")


def test_with_an_option_the_worker_stays_in_the_daemons_groups(mount_maker: MountMaker, memory: Path) -> None:
    mount = mount_maker("cgroup=daemon")
    assert mount.read("debug/ktask_cgroup") == "daemon\n"
    spec = f"fallocate path={memory}/f length=1M chunk=4096 rate_max=1"
    with group("") as where:
        assert start_in(mount, where, f"{spec} name=a").status == 0
        assert groups_of(wait_for_worker(mount, "a")) == groups_of("self")
        assert mount.write("debug/ktask_cgroup", "caller") == (0, None)
        assert start_in(mount, where, f"{spec} name=b").status == 0
        assert groups_of(wait_for_worker(mount, "b")) != groups_of("self")
        assert (
            mount.shell("for each in a b; do echo cancel > tasks/$each/control; cat tasks/$each/wait; done").status == 0
        )


def test_pages_are_charged_to_the_caller(mounted: Mount, huge: Path) -> None:
    with group("hugetlb") as where:
        assert start_in(mounted, where, f"fallocate name=t path={huge}/f length=40M").status == 0
        assert mounted.cat("tasks/t/wait").status == 0
        assert int((where / "hugetlb.2MB.current").read_text()) == 40 * MIB
        (huge / "f").unlink()


def test_memory_is_charged_to_the_caller(mounted: Mount, memory: Path) -> None:
    with group("memory") as where:
        usage = where / ("memory.current" if (where / "memory.current").exists() else "memory.usage_in_bytes")
        assert start_in(mounted, where, f"fallocate name=t path={memory}/f length=40M").status == 0
        assert mounted.cat("tasks/t/wait").status == 0
        assert int(usage.read_text()) >= 40 * MIB
        (memory / "f").unlink()


def test_a_limit_on_processes_holds(mounted: Mount, memory: Path) -> None:
    """One for the caller's shell, one for the worker, and none for the worker's control thread."""
    with group("pids", {"pids.max": "2"}) as where:
        refused = refused_in(mounted, where, f"fallocate path={memory}/f length=1M")
        assert refused.errname == "EAGAIN"
        assert "pids.max" in refused.words
        assert not (memory / "f").exists()


def test_a_cpuset_holds(mounted: Mount, memory: Path) -> None:
    cpu = str(min(os.sched_getaffinity(0)))
    with group("cpuset", {"cpuset.cpus": cpu}) as where:
        spec = f"fallocate name=t path={memory}/f length=1M chunk=4096 rate_max=1"
        assert start_in(mounted, where, spec).status == 0
        assert os.sched_getaffinity(wait_for_worker(mounted, "t")) == set(parse_cpulist(cpu))
        mounted.write("tasks/t/control", "cancel")
        assert mounted.cat("tasks/t/wait").status == 0


@pytest.mark.parametrize("controller", distinct("", "memory"))
def test_a_group_that_was_removed_after_the_open_is_missed(mounted: Mount, memory: Path, controller: str) -> None:
    with group(controller) as where:
        script = ENTER + LEAVE + 'enter "$2"; exec 3>tasks/control; leave "$2"; rmdir "$2"; echo "$1" >&3\n'
        refused = refused_in(mounted, where, f"fallocate path={memory}/f length=1M", script)
    assert refused.errname == "ENOENT"
    assert where.name in refused.words
    assert not (memory / "f").exists()


@pytest.mark.parametrize("controller", distinct("", "memory"))
def test_a_group_cannot_be_removed_while_a_worker_is_in_it(mounted: Mount, memory: Path, controller: str) -> None:
    with group(controller) as where:
        assert start_in(mounted, where, f"fallocate name=t path={memory}/f length=1M chunk=4096 rate_max=1").status == 0
        wait_for_worker(mounted, "t")
        with pytest.raises(OSError, match="Device or resource busy"):
            where.rmdir()
        mounted.write("tasks/t/control", "cancel")
        assert mounted.cat("tasks/t/wait").status == 0


def test_a_group_that_may_have_no_processes_is_refused(mounted: Mount, memory: Path) -> None:
    with group("", {"hugetlb.2MB.max": str(PAGE)}) as where:
        script = ENTER + LEAVE + 'enter "$2"; exec 3>tasks/control; leave "$2"\n'
        script += 'echo +hugetlb > "$2/cgroup.subtree_control"; echo "$1" >&3\n'
        refused = refused_in(mounted, where, f"fallocate path={memory}/f length=1M", script)
    assert refused.errname == "EBUSY"
    assert where.name in refused.words


@pytest.mark.parametrize("controller", distinct("", "freezer"))
def test_in_a_frozen_group_a_start_waits_for_the_thaw(mounted: Mount, memory: Path, controller: str) -> None:
    with group(controller) as where:
        file, freeze, thaw = "cgroup.freeze", "1", "0"
        if not (where / file).exists():
            file, freeze, thaw = "freezer.state", "FROZEN", "THAWED"
        script = ENTER + LEAVE + 'enter "$2"; exec 3>tasks/control; leave "$2"\necho "$3" > "$2/$4"; echo "$1" >&3\n'
        spec = f"fallocate name=t path={memory}/f length=1M chunk=4096 rate_max=1"
        assert mounted.shell(script, spec, str(where), freeze, file).status == 0
        assert mounted.read("tasks/t/state") == "starting\n"
        words = f"/{where.name} is frozen)"
        until(lambda: words in mounted.read("tasks/t/status"), "it is frozen at its start")
        assert mounted.write("tasks/control", f"fallocate name=other path={memory}/g length=1M") == (0, None)
        assert mounted.cat("tasks/other/wait").status == 0
        (where / file).write_text(thaw)
        wait_for_worker(mounted, "t")
        assert words not in mounted.read("tasks/t/status")
        (where / file).write_text(freeze)
        until(lambda: words in mounted.read("tasks/t/status"), "it is frozen at work")
        assert mounted.write("tasks/t/rate_max", "max") == (0, None)
        (where / file).write_text(thaw)
        assert mounted.cat("tasks/t/wait").status == 0
        assert mounted.read("tasks/t/state") == "done\n"


def test_a_frozen_group_is_named_although_a_reader_of_the_mount_in_it_cannot_freeze(
    mounted: Mount, memory: Path
) -> None:
    with group("") as where:
        assert start_in(mounted, where, f"fallocate name=t path={memory}/f length=1M chunk=4096 rate_max=1").status == 0
        wait_for_worker(mounted, "t")
        with subprocess.Popen(["cat", mounted.path / "events"], stdout=subprocess.DEVNULL) as reader:
            move([reader.pid], where)
            wchan = Path(f"/proc/{reader.pid}/wchan")
            until(lambda: wchan.read_text() == "request_wait_answer", "the reader waits for an event")
            (where / "cgroup.freeze").write_text("1")
            words = f"/{where.name} is frozen)"
            try:
                until(lambda: words in mounted.read("tasks/t/status"), "the frozen group is named")
                assert "frozen 0" in (where / "cgroup.events").read_text()
            finally:
                (where / "cgroup.freeze").write_text("0")
                reader.kill()
        assert words not in mounted.read("tasks/t/status")
        mounted.write("tasks/t/control", "cancel")
        assert mounted.cat("tasks/t/wait").status == 0


def test_a_caller_in_a_control_group_namespace(mounted: Mount, memory: Path) -> None:
    with group("") as where:
        script = (
            ENTER + 'enter "$2"\nunshare --cgroup sh -c \'cat /proc/self/cgroup; echo "$1" > tasks/control\' sh "$1"\n'
        )
        spec = f"fallocate name=t path={memory}/f length=1M chunk=4096 rate_max=1"
        outcome = mounted.shell(script, spec, str(where))
        assert (outcome.status, outcome.out.splitlines()[-1]) == (0, "0::/")
        assert where.name in groups_of(wait_for_worker(mounted, "t"))[-1]
        mounted.write("tasks/t/control", "cancel")
        assert mounted.cat("tasks/t/wait").status == 0


@pytest.mark.usefixtures("patient")
def test_an_ordinary_users_daemon_enters_what_is_delegated_to_the_user(
    mount_maker: MountMaker, two_users: tuple[User, User], memory: Path
) -> None:
    user, _ = two_users
    mount = mount_maker(user=user)
    spec = f"path={memory}/f length=1M chunk=4096 rate_max=1"

    def start(name: str, where: Path) -> Outcome:
        as_user = f"setpriv --reuid={user.uid} --regid={user.gid} --clear-groups"
        write = f'echo "fallocate name={name} {spec}" > "$1/tasks/control"'
        script = f'{ENTER} enter "$1"; {as_user} bash -c \'{write}\' bash "$2"'
        return shell(script, str(where), str(mount.path))

    def runs_in(name: str) -> str:
        until(lambda: mount.read(f"tasks/{name}/state", user=user) == "running\n", "the task runs")
        pid = dict(line.split(maxsplit=1) for line in mount.read(f"tasks/{name}/stat", user=user).splitlines())["pid"]
        path = groups_of(pid)[-1]
        mount.write(f"tasks/{name}/control", "cancel", user=user)
        assert mount.cat(f"tasks/{name}/wait", user=user).status == 0
        return path

    with contextlib.ExitStack() as stack:
        session = stack.enter_context(group(""))
        outside = stack.enter_context(group("", below=session))
        delegated = stack.enter_context(group("", below=outside))
        daemons, callers = (stack.enter_context(group("", name=name, below=delegated)) for name in ("daemon", "caller"))
        for path in (delegated, daemons, callers):
            for each in (path, path / "cgroup.procs"):
                os.chown(each, user.uid, user.gid)
        for each in (daemons, callers):
            stack.callback(move_all, each, own_group(""))
        daemon = psutil.Process(mount.pid)
        until(lambda: len(daemon.children(recursive=True)) == 2, "there are a spawner and a worker forked ahead")
        move([daemon.pid, *(each.pid for each in daemon.children(recursive=True))], daemons)

        assert start("inside", callers).status == 0
        assert runs_in("inside").endswith(f"{callers.name}")

        # Outside of the delegation: without a limit it does not matter, with one it does.
        assert start("free", outside).status == 0
        assert runs_in("free").endswith(f"{daemons.name}")
        strange = stack.enter_context(group("", name="strange", below=session))
        (session / "cgroup.subtree_control").write_text("+hugetlb")
        stack.callback((session / "cgroup.subtree_control").write_text, "-hugetlb")
        assert start("unlimited", strange).status == 0
        assert runs_in("unlimited").endswith(f"{daemons.name}")
        (strange / "hugetlb.2MB.max").write_text(str(PAGE))
        assert start("limited", strange).errname == "EACCES"
        assert strange.name in mount.read("info/last_cmd_status", user=user)


def move_all(there: Path, where: Path) -> None:
    """Move all processes of a group."""
    move([int(pid) for pid in (there / "cgroup.procs").read_text().split()], where)


def move(pids: list[int], where: Path) -> None:
    """Move processes into a group; one that has ended is left out."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            (where / "cgroup.procs").write_text(str(pid))
