"""``ktaskfs doctor``: each check on a simulated machine, and all checks on this machine."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Final

import pytest

from ktaskfs.cli import check_limits, check_pools, check_service
from ktaskfs.cli.arguments import SAVED_POOLS
from ktaskfs.cli.doctor import findings
from ktaskfs.cli.machine import Diagnosis, MachineFiles
from ktaskfs.cli.mounted import Mounted
from ktaskfs.cli.pool import HEAD, pools
from ktaskfs.version import VERSION
from tests.support.daemon import ROOT
from tests.support.poll import until
from tests.support.shell import Outcome, run

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from pathlib import Path

    from tests.cli.conftest import Command

    MachineMaker = Callable[[Mapping[str, str]], MachineFiles]

POOL: Final = "sys/kernel/mm/hugepages/hugepages-2048kB"
GIANT: Final = "sys/kernel/mm/hugepages/hugepages-1048576kB"
NODE: Final = "sys/devices/system/node/node{}/hugepages/hugepages-2048kB/nr_hugepages"
DEFAULTS: Final = {
    "proc/meminfo": "CommitLimit: 1000 kB\nCommitted_AS: 10 kB\nHugepagesize:    2048 kB\n",
    "proc/cmdline": "quiet",
    "proc/buddyinfo": "Node 0, zone   Normal  0 0 0 0 0 0 0 0 0 0 100\n",
    "proc/self/mounts": "none /dev/hugepages hugetlbfs rw,pagesize=2M 0 0\n",
    "proc/self/cgroup": "0::/a/b\n",
    "proc/sys/vm/overcommit_memory": "0\n",
    f"{POOL}/nr_hugepages": "100\n",
    f"{POOL}/free_hugepages": "60\n",
    f"{POOL}/resv_hugepages": "10\n",
    "sys/devices/system/node/has_memory": "0\n",
    NODE.format(0): "100\n",
    "sys/devices/system/cpu/online": "0-15\n",
}


@pytest.fixture
def make(tmp_path: Path) -> MachineMaker:
    """Makes a machine with these files. An empty text removes a default file."""

    def made(changes: Mapping[str, str]) -> MachineFiles:
        for path, text in {**DEFAULTS, **changes}.items():
            if text:
                (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
                (tmp_path / path).write_text(text)
        return MachineFiles(str(tmp_path))

    return made


def wrong(found: Iterable[Diagnosis]) -> list[tuple[str, str | None]]:
    """Returns the text and the command of each finding that is a problem."""
    return [(each.text, each.mend) for each in found if each.is_wrong]


def test_what_is_right_is_not_wrong(make: MachineMaker) -> None:
    machine = make({})
    for check in (
        check_pools.check_pools,
        check_pools.check_balance,
        check_pools.check_fragmentation,
        check_pools.check_mounts,
        check_limits.check_overcommit,
        check_limits.check_groups,
        check_limits.check_thp,
    ):
        found = list(check(machine))
        assert found
        assert wrong(found) == []


@pytest.mark.parametrize(
    ("cmdline", "sysctl", "asked"),
    [
        ("hugepages=128", "", 128),
        ("default_hugepagesz=2M hugepages=0:64,1:80", "", 144),
        ("hugepagesz=1G hugepages=4 hugepagesz=2M hugepages=512", "", 512),
        ("hugepages=8", "vm.nr_hugepages = 300\n", 300),
        ("", "# vm.nr_hugepages = 300\n-vm/nr_hugepages=101\n", 101),
        ("hugepagesz=1GB hugepages=4 hugepagesz=2MB hugepages=512", "", 512),
        ("hugepages=200MB hugepagesz=huge hugepages=many", "", 200),
    ],
)
def test_a_pool_with_less_than_was_asked_for(make: MachineMaker, cmdline: str, sysctl: str, asked: int) -> None:
    machine = make({"proc/cmdline": cmdline or "quiet", "etc/sysctl.d/10-pages.conf": sysctl})
    text = f"2M: 100 pages exist, but the boot asked for {asked}"
    assert wrong(check_pools.check_pools(machine)) == [(text, f"ktaskfs run reserve size=2M pages={asked}")]


def test_sysctl_files_replace_each_other(make: MachineMaker) -> None:
    machine = make(
        {
            "usr/lib/sysctl.d/50-a.conf": "vm.nr_hugepages = 1\n",
            "etc/sysctl.d/50-a.conf": "vm.nr_hugepages = 2\n",
            "run/sysctl.d/10-b.conf": "vm.nr_hugepages = 3\n",
        }
    )
    assert check_pools.asked_at_boot(machine) == {2 << 20: 2}


def test_what_pool_save_writes_is_asked_for(make: MachineMaker) -> None:
    table = """size node total free reserved surplus
2M - 140 0 0 0
2M 0 90 0 - 0
2M 1 50 0 - 0
1G - 4 0 0 0
"""
    other = f"f /run/x - - - - 5\n#w! /{POOL}/nr_hugepages - - - - 9\n"
    assert check_pools.asked_at_boot(make({"usr/lib/tmpfiles.d/x.conf": other})) == {}
    text = HEAD + "".join(f"w! {path} - - - - {pages}\n" for path, pages in pools(table))
    files = {"proc/cmdline": "hugepages=7", f"etc/{SAVED_POOLS.removeprefix('/etc/')}": text}
    assert check_pools.asked_at_boot(make(files)) == {2 << 20: 140, 1 << 30: 4}
    two = {"sys/devices/system/node/has_memory": "0-1\n", NODE.format(0): "90", NODE.format(1): "10"}
    assert wrong(check_pools.check_balance(make(files | two))) == []


def test_surplus_pages_do_not_count_and_no_page_at_all(make: MachineMaker) -> None:
    asked = {"proc/cmdline": "hugepages=100", f"{POOL}/surplus_hugepages": "1"}
    assert len(wrong(check_pools.check_pools(make(asked)))) == 1
    empty = {"proc/cmdline": "quiet", f"{POOL}/nr_hugepages": "0", f"{POOL}/surplus_hugepages": "0"}
    assert wrong(check_pools.check_pools(make(empty))) == [
        ("all pools of huge pages are empty", "ktaskfs run reserve size=2M pages=NUMBER")
    ]
    assert wrong(check_pools.check_pools(make(empty | {f"{POOL}/nr_overcommit_hugepages": "5"}))) == []


def test_balance(make: MachineMaker) -> None:
    two = {"sys/devices/system/node/has_memory": "0-1\n", NODE.format(0): "90", NODE.format(1): "10"}
    words = "2M: node 0 has 90, node 1 has 10"
    assert wrong(check_pools.check_balance(make(two))) == [(words, "ktaskfs run reserve size=2M pages=100 nodes=0-1")]
    assert wrong(check_pools.check_balance(make(two | {"proc/cmdline": "hugepages=0:90,1:10"}))) == []
    assert wrong(check_pools.check_balance(make(two | {NODE.format(0): "52", NODE.format(1): "48"}))) == []


def test_fragmentation(make: MachineMaker) -> None:
    pieces = {"proc/buddyinfo": "Node 0, zone   Normal  99000 0 0 0 0 0 0 0 0 1 0\n"}
    (found,) = wrong(check_pools.check_fragmentation(make(pieces)))
    assert found == (
        "2.0MiB of 388.7MiB free memory lie in blocks of 2M or more",
        "echo 1 > /proc/sys/vm/compact_memory",
    )
    some = {"proc/buddyinfo": "Node 0, zone   Normal  99000 0 0 0 0 0 0 0 0 50 0\n", "proc/cmdline": "hugepages=140"}
    assert wrong(check_pools.check_fragmentation(make(some))) == []
    assert len(wrong(check_pools.check_fragmentation(make(some | {"proc/cmdline": "hugepages=160"})))) == 1
    (nothing,) = check_pools.check_fragmentation(make({"proc/buddyinfo": "\n"}))
    assert nothing.level.name == "unknown"


def test_hugetlbfs(make: MachineMaker) -> None:
    none = "no writable hugetlbfs has pages of {0}"
    at = "mkdir -p {1} && mount -t hugetlbfs -o pagesize={0} none {1}"
    two, one = ("2M", "/dev/hugepages"), ("1G", "/dev/hugepages-1G")
    assert wrong(check_pools.check_mounts(make({"proc/self/mounts": "none / ext4 rw 0 0\n"}))) == [
        (none.format(*two), at.format(*two))
    ]
    assert wrong(check_pools.check_mounts(make({f"{GIANT}/nr_hugepages": "4"}))) == [
        (none.format(*one), at.format(*one))
    ]
    mounts = "none /a hugetlbfs rw,pagesize=1024M,size=1048576K 0 0\nnone /b\\040c hugetlbfs ro,pagesize=2M 0 0\n"
    found = list(check_pools.check_mounts(make({"proc/self/mounts": mounts})))
    assert found[0].text == "/a: pages of 1G, of which it may use 1048576K"
    assert wrong(found)[0] == ("/b c: pages of 2M, mounted read-only", "mount -o remount,rw '/b c'")
    small = "none /a hugetlbfs rw,pagesize=2M,size=1024K 0 0\n"
    ((text, mend),) = wrong(check_pools.check_mounts(make({"proc/self/mounts": small, f"{GIANT}/nr_hugepages": "0"})))
    assert text == "/a: pages of 2M, with size=1024K, less than one page"
    assert mend == "umount /a && mount -t hugetlbfs -o pagesize=2M none /a  # and with its other options"


def test_overcommit(make: MachineMaker) -> None:
    strict = {"proc/sys/vm/overcommit_memory": "2"}
    assert wrong(check_limits.check_overcommit(make(strict))) == []
    full = {"proc/meminfo": "CommitLimit: 1000 kB\nCommitted_AS: 950 kB\n"}
    ((text, mend),) = wrong(check_limits.check_overcommit(make(strict | full)))
    assert "950.0KiB of 1000.0KiB are committed" in text
    assert mend == "sysctl -w vm.overcommit_memory=0"


V2: Final = "none /sys/fs/cgroup cgroup2 rw 0 0\nnone /dev/hugepages hugetlbfs rw,pagesize=2M 0 0\n"


def test_control_groups_of_version_2(make: MachineMaker) -> None:
    group = "sys/fs/cgroup/a"
    files = {
        "proc/self/mounts": V2,
        f"{group}/b/memory.max": "max\n",
        f"{group}/b/memory.current": "5\n",
        f"{group}/memory.max": str(1 << 30),
        f"{group}/memory.current": str(1 << 30),
        f"{group}/memory.stat": f"anon 1\nfile {512 << 20}\nshmem {1 << 20}\n",
        f"{group}/b/hugetlb.2MB.max": str(100 << 20),
        f"{group}/b/hugetlb.2MB.current": str(40 << 20),
        f"{group}/pids.max": "20\n",
        f"{group}/pids.current": "19\n",
        f"{group}/hugetlb.2MB.rsvd.max": str(70 << 20),
        f"{group}/hugetlb.2MB.rsvd.current": str(40 << 20),
    }
    found = list(check_limits.check_groups(make(files)))
    assert [each.text for each in found] == [
        f"/{group}/memory.max leaves 511.0MiB of memory",
        f"/{group}/pids.max leaves 1 processes and threads",
        f"/{group}/b/hugetlb.2MB.max leaves 60.0MiB of the 100.0MiB that are free in the pool",
        f"/{group}/hugetlb.2MB.rsvd.max leaves 30.0MiB of the 100.0MiB that are free in the pool",
    ]
    lifted = ("pids.max", "b/hugetlb.2MB.max", "hugetlb.2MB.rsvd.max")
    assert [each.mend for each in found] == [None, *(f"echo max > /{group}/{file}" for file in lifted)]
    full = make(files | {f"{group}/memory.stat": "file 0\n"})
    assert wrong(check_limits.check_groups(full))[0][1] == f"echo max > /{group}/memory.max"


def test_control_groups_of_version_1(make: MachineMaker) -> None:
    files = {
        "proc/self/mounts": "none /cg/memory cgroup rw,memory 0 0\nnone /cg/hugetlb cgroup rw,hugetlb 0 0\n",
        "proc/self/cgroup": "9:name=systemd:/\n4:memory:/x\n3:hugetlb:/x\n0::/\n",
        "cg/memory/x/memory.limit_in_bytes": str(2**63 - 4096),
        "cg/memory/x/memory.usage_in_bytes": "5",
        "cg/hugetlb/x/hugetlb.2MB.limit_in_bytes": str(2 << 20),
        "cg/hugetlb/x/hugetlb.2MB.usage_in_bytes": "0",
    }
    assert wrong(check_limits.check_groups(make(files))) == [
        (
            "/cg/hugetlb/x/hugetlb.2MB.limit_in_bytes leaves 2.0MiB of the 100.0MiB that are free in the pool",
            "echo -1 > /cg/hugetlb/x/hugetlb.2MB.limit_in_bytes",
        )
    ]


def test_transparent_huge_pages(make: MachineMaker) -> None:
    place = "sys/kernel/mm/transparent_hugepage"
    files = {f"{place}/enabled": "always madvise [never]\n", f"{place}/shmem_enabled": "always never [deny] force\n"}
    assert [mend for _, mend in wrong(check_limits.check_thp(make(files)))] == [
        f"echo madvise > /{place}/enabled",
        f"echo never > /{place}/shmem_enabled",
    ]


def test_the_kernel_and_fuse(make: MachineMaker) -> None:
    old = {"proc/sys/kernel/osrelease": "5.10.0-28-amd64\n", "proc/filesystems": "nodev\ttmpfs\n", "dev/fuse": "x"}
    assert wrong(check_service.check_system(make(old)))[0][0] == "Linux 5.10.0-28-amd64 is older than 5.14"
    assert wrong(check_service.check_fuse(make(old)))[0][1] == "modprobe fuse"
    new = {"proc/sys/kernel/osrelease": "6.1.0\n", "proc/filesystems": "nodev\tfuse\n", "dev/fuse": "x"}
    assert wrong(check_service.check_system(make(new))) == []
    assert wrong(check_service.check_fuse(make(new))) == []


def test_a_user_who_may_not_mount(make: MachineMaker, monkeypatch: pytest.MonkeyPatch) -> None:
    """That is no problem where there is a service."""
    monkeypatch.setattr(os, "access", lambda *_: False)
    (found,) = check_service.check_fuse(make({"proc/filesystems": "nodev\tfuse\n", "dev/fuse": "x"}))
    assert (found.level.name, found.mend) == ("note", "chmod 666 /dev/fuse")
    assert found.text.endswith(" may not open /dev/fuse, and cannot mount")


def test_threads_against_the_cpus(command: Command, make: MachineMaker) -> None:
    mounted, most = Mounted(str(command.mount.path)), "debug/ktask_max_threads"
    for cpus, threads, fine in ((2, "4", True), (8, "4", True), (16, "4", False), (64, "4", False), (64, "max", True)):
        assert command.mount.write(most, threads) == (0, None)
        found = wrong(check_service.check_threads(make({"sys/devices/system/cpu/online": f"0-{cpus - 1}"}), mounted))
        assert (found == []) is fine, (cpus, threads)
        if not fine:
            assert str(found[0][1]).startswith(f"echo max > {command.mount.path}/{most}")


def test_the_mount(command: Command, area: Path, make: MachineMaker) -> None:
    mount = command.mount
    machine = make({})
    found = list(check_service.check_mount(machine, Mounted(str(mount.path)), {}))
    assert [each.text for each in found] == [f"{mount.path} answers", f"command and daemon are {VERSION}"]
    options = "  # with the options that it had"
    (missing,) = check_service.check_mount(machine, Mounted(str(area), 0), {"LoadState": "loaded"})
    assert (missing.is_wrong, missing.mend) == (True, f"ktaskfs mount {area}"), "it is not the service's"
    mount.process.kill()
    mount.process.wait()
    (dead,) = check_service.check_mount(machine, Mounted(str(mount.path), 0), {})
    assert dead.text == f"{mount.path}: its daemon does not answer"
    assert dead.mend == f"ktaskfs mount {mount.path}{options}"
    lines = f"# comment\n\nktaskfs {mount.path} ktaskfs gid=ktask,statedir=/var/lib/kt 0 0\n"
    (listed,) = check_service.check_mount(make({"etc/fstab": lines}), Mounted(f"{mount.path}/", 0), {})
    assert listed.mend == f"mount {mount.path}/"
    mount.kill()


def test_another_version(area: Path, make: MachineMaker) -> None:
    """The daemon was not restarted after an upgrade. Its files show its older version."""
    (area / "tasks").mkdir()
    (area / "tasks/control").touch()
    (area / "version").write_text("0.0.1\n")
    found = list(check_service.check_mount(make({}), Mounted(str(area)), {"LoadState": "loaded"}))
    mend = f"umount {area} && ktaskfs mount {area}  # with the options that it had"
    assert wrong(found) == [(f"the command is {VERSION}, the daemon of {area} is 0.0.1", mend)]


def test_this_machine(command: Command) -> None:
    """The machine may have any problem: all checks run, and the exit status says whether one found something."""
    checks = {
        "versions", "fuse", "service", "mount", "access", "threads", "pools", "fragmentation", "overcommit",
        "control groups", "transparent huge pages",
    }  # fmt: skip
    looks: list[Outcome] = []

    def answers() -> bool:  # not while the daemon takes more than five seconds
        looks[:] = [command("doctor", "--json"), command("doctor")]
        return '"check": "access"' in looks[0].out and "ok       mount: " in looks[1].out

    until(answers, "the daemon answers")
    outcome, plain = looks
    found = [json.loads(line) for line in outcome.out.splitlines()]
    assert outcome.err == ""
    assert {each["check"] for each in found} >= checks
    assert all(set(each) == {"check", "level", "text", "mend"} for each in found)
    assert all((each["mend"] is not None) == (each["level"] in ("wrong", "note")) for each in found)
    assert outcome.status == int(any(each["level"] == "wrong" for each in found))
    text = plain.out.splitlines()
    assert any(line.startswith("ok       mount: ") for line in text)
    for each in found:  # others use the machine, so that figures change between the two looks
        if each["check"] in ("versions", "fuse", "service", "mount", "access", "threads"):
            assert any(each["text"] in line for line in text)
    nowhere = run(*command.words("doctor")[:4], "-m", "/nonexistent", cwd=ROOT)
    assert (nowhere.status, "/nonexistent: no ktaskfs is mounted" in nowhere.out) == (1, True)


def test_a_machine_of_which_nothing_can_be_read(tmp_path: Path) -> None:
    found = list(findings(MachineFiles(str(tmp_path)), Mounted(str(tmp_path), 0)))
    assert {each.level.name for each in found} == {"wrong", "unknown", "ok"}
