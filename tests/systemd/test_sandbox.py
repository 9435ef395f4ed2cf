"""Each operation has the same result under each service as outside of the sandbox. New operations are included."""

from __future__ import annotations

import contextlib
import sys
from typing import TYPE_CHECKING, Any, Final

import pytest

from ktaskfs.operations.base.parameters import PATH
from ktaskfs.operations.base.registry import find_operations
from tests.support.hugepages import reserved
from tests.support.poll import until
from tests.support.shell import Outcome

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ktaskfs.operations.base.operation import Operation
    from tests.systemd.machine import Machine

OPERATIONS: Final = find_operations()
HUGE: Final = 2 << 20
UNITS: Final = ("ktaskfs.service", "ktaskfs-confined.service")
POINT: Final = "/run/ktaskfs"
OUTSIDE: Final = "/mnt/outside"
MEMORY: Final = ("/dev/shm", "/dev/hugepages")
DISK: Final = ("/disk", "/var/tmp")
"""A filesystem of a disk, and an overlay."""
CALLERS: Final = [("ann", "ann"), ("root", "root"), ("root", "ann")]
"""The writer of the spec, and the owner of the files."""
VARIANTS: Final = {
    "ranges/checksum": ("algorithm=xxh3", "algorithm=blake3", "algorithm=sha256"),
    "ranges/copy": ("sparse=0 digest=crc32",),
    "ranges/fallocate": ("undo=1",),
    "ranges/free": ("shrink=1", "unlink=1"),
    "trees/checksum": ("algorithm=b2sum",),
    "trees/prefetch": ("touch=1",),
}
"""Further texts of a spec, by family and name: each leads to other system calls."""
HOLDER: Final = """
import array, mmap, os, pathlib, signal, socket, sys
path = pathlib.Path("/dev/shm/held")
path.write_bytes(bytes(4 << 20))
os.chown(path, 65534, 65534)
inside, unread = socket.socketpair()
fd = os.open(path, os.O_RDWR)
inside.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))])
os.close(fd)
memory = mmap.mmap(-1, 4 << 20)
memory[:] = bytes(4 << 20)
maps = pathlib.Path("/proc/self/maps").read_text().splitlines()
(there,) = [line.split()[0] for line in maps if line.endswith("/dev/zero (deleted)")]
pathlib.Path("/run/holder").write_text(f"/proc/{os.getpid()}/map_files/{there}")
signal.pause()
"""
"""Has a file in flight in a socket, where no process can see it, and shared memory without a name."""

SMALL_PAGES: Final = """
import ctypes, mmap, os, pathlib, signal
memory = mmap.mmap(-1, 16 << 20, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
memory.madvise(mmap.MADV_NOHUGEPAGE)
memory[:] = bytes(16 << 20)
address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
pathlib.Path("/run/small").write_text(f"pid={os.getpid()} mapping={address:#x}")
signal.pause()
"""
"""Has memory that every collapse treats in the same way: the process wants no huge pages."""

MAKE_FILES: Final = {
    "/dev/shm": "head -c 2M /dev/zero > {path} && truncate --size 4M {path}",
    "/dev/hugepages": "truncate --size 4M {path} && fallocate --length 2M {path}",
}
"""Half of each file is a hole. hugetlbfs has no write(2)."""
MAKE_TREE: Final = "mkdir -p {path}/below && head -c 5000 /dev/zero > {path}/below/file && touch {path}/empty"


def family(operation: Operation[Any]) -> str:
    return type(operation).__module__.split(".")[2]


def specs() -> Iterator[tuple[str, str]]:
    """Each spec, and the script that makes its targets."""
    for name, operation in ((word.name, each) for word in OPERATIONS.values() for each in word.meanings):
        declared = {each.name: each for each in operation.declared}
        texts = {"pattern": "00", "nodes": "0", "size": "2M", "pages": "$pages"}
        if "path" not in declared:
            texts |= {"pid": "$pid", "mapping": "$mapping"}
        fixed = [f"{key}={text}" for key, text in texts.items() if key in declared]
        paths = [key for key, each in declared.items() if each.kind is PATH]
        for place in (MEMORY if family(operation) == "ranges" else DISK) if paths else ("",):
            make = MAKE_FILES.get(place, MAKE_TREE)
            targets = {key: f"{place}/sandbox/{key}" for key in paths}
            made = [key for key in paths if (name, place in DISK, key) != ("copy", True, "path")]
            script = " && ".join(make.format(path=targets[key]) for key in made)
            given = [*fixed, *(f"{key}={path}" for key, path in targets.items())]
            for more in ("", *VARIANTS.get(f"{family(operation)}/{name}", ())):
                yield " ".join([name, *given, *more.split()]), script or "true"


def outcomes(machine: Machine, mount: str, caller: str, owner: str) -> dict[str, str]:
    """How each spec ends: whether it was refused, the state, the error, the result and the last words."""
    lines = ["pages=$(cat /sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages)", ". /run/small", f"cd {mount}"]
    all_specs = list(specs())
    for spec, make in all_specs:
        for place in (*MEMORY, *DISK):
            lines.append(f"rm -rf {place}/sandbox; install -d -o {owner} {place}/sandbox")
        start = f"echo '{spec} name=each' > tasks/control || cat info/last_cmd_status"
        end = "tail -n 1 tasks/each/wait; cat tasks/each/error tasks/each/result; rmdir tasks/each"
        lines += [
            f"runuser -u {owner} -- bash -c '{make}' || echo unmade",
            f'runuser -u {caller} -- bash -c "{start}" 2>&1',
            f"[ ! -e tasks/each ] || {{ {end}; }}",
            "echo ------",
        ]
    outcome = machine.sh("\n".join(lines))
    answers = outcome.out.split("------\n")
    assert len(answers) == len(all_specs) + 1, outcome
    return {spec: answer for (spec, _), answer in zip(all_specs, answers, strict=False)}


@pytest.fixture(scope="module")
def ready(machine: Machine) -> Iterator[Machine]:
    """The machine with separate huge pages, and no running service."""
    with reserved(HUGE, 16):
        setup = f"systemctl stop {UNITS[0]}; mount -t hugetlbfs -o pagesize=2M,mode=1777 none /dev/hugepages"
        assert machine.sh(setup).status == 0
        assert machine.run("systemd-run", "--quiet", "--unit=small", sys.executable, "-c", SMALL_PAGES).status == 0
        until(lambda: machine.run("test", "-s", "/run/small").status == 0, "there is a process with small pages")
        yield machine
        assert machine.sh("systemctl stop small; rm /run/small").status == 0
        cleanup = " ".join(f"{place}/sandbox" for place in (*MEMORY, *DISK))
        assert machine.sh(f"rm -rf {cleanup}; umount /dev/hugepages").status == 0


@pytest.fixture(scope="module")
def holder(ready: Machine) -> Iterator[str]:
    """A process that holds /dev/shm/held out of sight; the path of memory that it shares."""
    assert ready.run("systemd-run", "--quiet", "--unit=holder", sys.executable, "-c", HOLDER).status == 0
    until(lambda: ready.run("test", "-s", "/run/holder").status == 0, "the holder is ready")
    yield ready.out("cat", "/run/holder")
    assert ready.sh("systemctl stop holder; rm /run/holder /dev/shm/held").status == 0


@pytest.fixture(scope="module")
def outside(ready: Machine) -> Iterator[dict[tuple[str, str], dict[str, str]]]:
    """The result of each spec with a daemon that has all rights of root and no filter."""
    options = f"gid=ktask,mode=0660,statedir={OUTSIDE}-state"
    assert ready.sh(f"mkdir -p {OUTSIDE} && ktaskfs mount -o {options} {OUTSIDE}").status == 0
    yield {each: outcomes(ready, OUTSIDE, *each) for each in CALLERS}
    assert ready.run("umount", OUTSIDE).status == 0


def test_outside_all_is_done(outside: dict[tuple[str, str], dict[str, str]]) -> None:
    """So the comparison below compares work, and not refusals. Only root may change a pool, or another's memory."""
    for (caller, _), ends in outside.items():
        for spec, answer in ends.items():
            refused = caller != "root" and (spec.startswith("reserve ") or " pid=" in spec)
            assert answer.startswith("bash: " if refused else "done\n"), (caller, spec, answer)


@pytest.mark.parametrize("caller", CALLERS, ids="-".join)
@pytest.mark.parametrize("unit", UNITS)
def test_the_sandbox_changes_nothing(
    ready: Machine, outside: dict[tuple[str, str], dict[str, str]], unit: str, caller: tuple[str, str]
) -> None:
    with running(ready, unit):
        found = outcomes(ready, POINT, *caller)
    assert {spec: told_to_all(spec, answer) for spec, answer in found.items()} == {
        spec: told_to_all(spec, answer) for spec, answer in outside[caller].items()
    }


def told_to_all(spec: str, answer: str) -> str:
    """An answer without the dirty pages of a file: they need cachestat(2), whose name systemd 252 does not know."""
    head, header, table = answer.partition("resident dirty total path\n")
    if not spec.startswith("survey ") or not header:
        return answer
    sums = [line for line in head.splitlines() if not line.startswith("dirty")]
    rows = [" ".join(words[:1] + words[2:]) for words in map(str.split, table.splitlines())]
    return "\n".join([*sums, *rows])


@pytest.mark.parametrize("unit", UNITS)
def test_what_only_root_may_ask_the_kernel(ready: Machine, holder: str, unit: str) -> None:
    """Whether somebody else's file is held out of sight (CAP_LEASE); to open memory that a process shares."""
    with running(ready, unit):
        clear = f"echo 'clear path=/dev/shm/held' > {POINT}/tasks/control"
        assert ready.sh(clear).errname == "EBUSY"
        assert "held by a process that you cannot see" in ready.out("cat", f"{POINT}/info/last_cmd_status")
        survey = f"echo 'survey path={holder} name=shared' > {POINT}/tasks/control"
        assert ready.sh(survey) == Outcome(0, "", "")
        assert ready.sh(f"tail -n 1 {POINT}/tasks/shared/wait; rmdir {POINT}/tasks/shared") == Outcome(0, "done\n", "")


@contextlib.contextmanager
def running(machine: Machine, unit: str) -> Iterator[None]:
    """With the service running."""
    machine.start(unit)
    machine.until_mounted()
    try:
        yield
    finally:
        assert machine.run("systemctl", "stop", unit).status == 0
