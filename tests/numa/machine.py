"""A virtual machine with two NUMA nodes whose root is this system's, read-only below an overlay."""

from __future__ import annotations

import base64
import contextlib
import os
import re
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tests.numa import packages, ramdisk
from tests.support.daemon import ROOT
from tests.support.poll import until

if TYPE_CHECKING:
    from collections.abc import Iterator

NODE_MEMORY: Final = 768
"""MiB of each of the two nodes: a test reserves all of one, and the tests themselves then have the other."""
APPARMOR: Final = "apparmor"
SELINUX: Final = "selinux"
"""A kernel has one of them at work."""
PROCESSOR: Final = "max,la57=off,smap=off,smep=off,umip=off,erms=off,fsrm=off"
"""Without features that slow the emulation of each memory access or system call: a fifth less work in total.

With erms or fsrm, the kernel copies and zeroes by one instruction that is emulated byte after byte.
"""
TIMEOUT: Final = 2700.0
"""Seconds; the machine emulates its processors, and may have to share the real ones with much else."""


def run(command: str, labels: str = APPARMOR) -> tuple[int, str]:
    """Run ``command`` with sh(1) as root of a new machine: its exit status and all output.

    ``labels``: APPARMOR or SELINUX. The machine has four processors on two nodes. Written files disappear with the
    machine. The status is -1 if the machine ended before the command. Raises Unavailable (see ``packages``).
    """
    parts = packages.install()
    with tempfile.TemporaryDirectory(prefix="kt-vm-") as name:
        directory = Path(name)
        (directory / "ramdisk").write_bytes(ramdisk.build(parts.modules, parts.busybox))
        with _shared_root(parts.sharer, directory) as socket:
            done = subprocess.run(
                _qemu(parts, directory / "ramdisk", socket, _parameters(command, labels)),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                timeout=TIMEOUT,
                check=False,
            )
    output = done.stdout.decode(errors="replace").replace("\r", "")
    status = re.search(r"^status=(\d+)$", output, re.MULTILINE)
    return (int(status[1]) if status else -1), output


def _parameters(command: str, labels: str) -> str:
    """The kernel's."""
    encoded = base64.b64encode(command.encode()).decode()
    # The kernel's checks of its clock take seconds and fail with emulated processors. With tsc=reliable it measures
    # the clock's frequency wrongly on a busy host, and its seconds pass several times too fast.
    # norandmaps: a program at the same addresses again is not translated again.
    # init_on_alloc: QEMU executes old translations of a page of memory until a processor writes to the page. It does
    # not see that the server of the files writes there, so a program would execute what was in the page before.
    emulated = "mitigations=off random.trust_cpu=on init_on_alloc=1 norandmaps tsc=unstable"
    modules = f"lsm=landlock,lockdown,yama,integrity,{labels},bpf"
    return f"console=ttyS0 panic=-1 quiet {emulated} {modules} command={encoded}"


def _qemu(parts: packages.Parts, ramdisk: Path, socket: Path, parameters: str) -> list[str]:
    nodes = []
    for node, cpus in enumerate(("0-1", "2-3")):
        nodes += ["-object", f"memory-backend-memfd,id=m{node},size={NODE_MEMORY}M,share=on"]
        nodes += ["-numa", f"node,nodeid={node},cpus={cpus},memdev=m{node}"]
    return [
        str(parts.qemu),
        *("-accel", "tcg,thread=multi", "-M", "q35", "-cpu", PROCESSOR, "-smp", "4", "-m", f"{2 * NODE_MEMORY}M"),
        *nodes,
        *("-chardev", f"socket,id=c0,path={socket}"),
        *("-device", "vhost-user-fs-pci,chardev=c0,tag=root,queue-size=1024"),
        *("-nodefaults", "-no-user-config", "-display", "none", "-serial", "stdio", "-no-reboot"),
        *("-kernel", str(parts.kernel), "-initrd", str(ramdisk)),
        *("-append", parameters),
    ]


@contextlib.contextmanager
def _shared_root(sharer: Path, directory: Path) -> Iterator[Path]:
    """Serve / (and the project, if that is on a separate filesystem), read-only; gives the socket."""
    view, socket, log = directory / "view", directory / "socket", directory / "log"
    view.mkdir()
    binds = ["/"]
    for path in (str(ROOT), sys.base_prefix):
        if os.stat(path).st_dev != os.stat("/").st_dev:
            binds.append(path)
    script = [f"mount --bind {shlex.quote(path)} {shlex.quote(str(view) + path.rstrip('/'))}" for path in binds]
    script += [f"mount -o remount,bind,ro {shlex.quote(str(view) + path.rstrip('/'))}" for path in binds]
    options = f"source={view},cache=always,sandbox=chroot"
    script.append(shlex.join(["exec", str(sharer), f"--socket-path={socket}", "-o", options]))
    with log.open("wb") as stream:
        process = subprocess.Popen(
            ["unshare", "-m", "sh", "-ec", "\n".join(script)], stdin=subprocess.DEVNULL, stdout=stream, stderr=stream
        )
    try:

        def ready() -> bool:
            assert process.poll() is None, log.read_text()
            return socket.exists()

        until(ready, "the virtual machine's files are served")
        yield socket
    finally:
        process.terminate()
        process.wait()
