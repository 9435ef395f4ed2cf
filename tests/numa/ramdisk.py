"""The first files of a virtual machine: busybox, the modules it needs, and an init that moves into the host's root."""

from __future__ import annotations

import gzip
import lzma
import re
import stat
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MODULES: Final = ("virtio_pci", "virtiofs", "overlay", "autofs4")
"""Modules that are not built into Debian's kernel; their dependencies are added. virtiofs brings FUSE."""

INIT: Final = """#!/bin/busybox sh
B=/bin/busybox
$B mount -t proc proc /proc
$B mount -t sysfs sysfs /sys
$B mount -t devtmpfs dev /dev
for module in {modules}; do $B insmod /modules/$module || $B poweroff -f; done
$B mount -t virtiofs -o ro root /host || $B poweroff -f
$B mount -t tmpfs tmpfs /above
$B mkdir -p /above/files/etc /above/work
# Other tests make and remove users on the host, and the overlay cannot copy a file that was replaced there.
for name in passwd group shadow gshadow subuid subgid; do
  for each in $name $name-; do
    tries=0
    while [ -e /host/etc/$each ] && ! $B cp -p /host/etc/$each /above/files/etc; do
      [ $((tries += 1)) -lt 100 ] || $B poweroff -f
    done
  done
done
$B mount -t overlay -o lowerdir=/host,upperdir=/above/files,workdir=/above/work overlay /root || $B poweroff -f
for name in proc sys dev; do $B mount --move /$name /root/$name; done
$B mkdir -p /root/dev/pts /root/dev/shm
$B mount -t devpts devpts /root/dev/pts
$B mount -t tmpfs tmpfs /root/dev/shm
$B mount -t tmpfs tmpfs /root/run
$B mount -t securityfs securityfs /root/sys/kernel/security
$B mount -t cgroup2 cgroup2 /root/sys/fs/cgroup
echo "+cpu +cpuset +hugetlb +memory +pids" > /root/sys/fs/cgroup/cgroup.subtree_control
$B cp /bin/busybox /root/run/busybox
$B ip link set lo up
exec $B switch_root /root /bin/sh -c '
  export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root TERM=dumb LC_ALL=C
  command=$(sed -n "s/.*command=\\([^ ]*\\).*/\\1/p" /proc/cmdline | base64 -d)
  sh -c "$command"
  echo "status=$?"
  exec /run/busybox poweroff -f'
"""


def build(modules: Path, busybox: Path) -> bytes:
    """The compressed archive."""
    needed = list(_with_dependencies(modules))
    entries: list[tuple[str, int, bytes]] = [
        (name, stat.S_IFDIR | 0o755, b"") for name in ("bin", "modules", "proc", "sys", "dev", "host", "above", "root")
    ]
    entries += [(f"modules/{name}.ko", stat.S_IFREG | 0o644, content) for name, content in needed]
    init = INIT.format(modules=" ".join(f"{name}.ko" for name, _ in needed))
    entries.append(("bin/busybox", stat.S_IFREG | 0o755, busybox.read_bytes()))
    entries.append(("init", stat.S_IFREG | 0o755, init.encode()))
    return gzip.compress(b"".join(_archive(entries)), 1)


def _with_dependencies(modules: Path) -> Iterator[tuple[str, bytes]]:
    """Name and content of each module, after those it depends on; one that is built into the kernel has no file."""
    files = {path.name.split(".")[0].replace("-", "_"): path for path in modules.rglob("*.ko*")}
    seen: set[str] = set()

    def visit(name: str) -> Iterator[tuple[str, bytes]]:
        if name in seen or name not in files:
            return
        seen.add(name)
        content = files[name].read_bytes()
        if files[name].suffix == ".xz":
            content = lzma.decompress(content)
        depends = re.search(rb"\0depends=([^\0]*)\0", content)
        for other in depends[1].decode().split(",") if depends else ():
            yield from visit(other.replace("-", "_"))
        yield name, content

    for name in MODULES:
        yield from visit(name)


def _archive(entries: list[tuple[str, int, bytes]]) -> Iterator[bytes]:
    """The format that the kernel unpacks (Documentation/driver-api/early-userspace/buffer-format.rst), in pieces."""
    for number, (name, mode, content) in enumerate([*entries, ("TRAILER!!!", 0, b"")], 1):
        fields = (number, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(name) + 1, 0)
        header = b"070701" + b"".join(b"%08X" % field for field in fields) + name.encode() + b"\0"
        yield header + b"\0" * (-len(header) % 4)
        yield content + b"\0" * (-len(content) % 4)
