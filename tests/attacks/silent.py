"""An attacker whose root directory is on a FUSE filesystem that does not answer any more.

    python silent.py UID POINT DIRECTORY FILE [TEXT]

Run it as root. It mounts on POINT, in a mount namespace of its own, as for a user of fusermount3 with allow_other, and
becomes the user UID with this root directory. Then it opens FILE in DIRECTORY, and writes TEXT, if given. Prints
``held`` when it has opened the file, or when the kernel asks the filesystem for something.
"""

from __future__ import annotations

import ctypes
import os
import signal
import struct
import sys

CLONE_NEWNS = 0x20000
MS_REC, MS_PRIVATE = 0x4000, 0x40000
PR_SET_PDEATHSIG = 1
GETATTR, INIT = 3, 26

libc = ctypes.CDLL(None, use_errno=True)


def check(result: int) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def serve(fd: int, silent: int) -> None:
    """Answer until ``silent`` can be read; then print what would need an answer."""
    quiet = False
    while True:
        request = os.read(fd, 1 << 17)
        _, opcode, unique, node = struct.unpack_from("<IIQQ", request)
        quiet = quiet or bool(os.read(silent, 1) if ready(silent) else b"")
        if quiet:
            os.write(1, b"held\n")
            continue
        if opcode == INIT:
            body = struct.pack("<4I2H2I2HI7I", 7, 31, 1 << 16, 0, 0, 0, 4096, 1, 0, 0, *[0] * 8)[:64]
        elif opcode == GETATTR:  # valid for no time
            attributes = struct.pack("<6Q10I", node, 0, 0, 0, 0, 0, 0, 0, 0, 0o040755, 1, 0, 0, 0, 4096, 0)
            body = struct.pack("<Q2I", 0, 0, 0) + attributes
        else:
            os.write(fd, struct.pack("<IiQ", 16, -38, unique))
            continue
        os.write(fd, struct.pack("<IiQ", 16 + len(body), 0, unique) + body)


def ready(fd: int) -> bool:
    import select

    return bool(select.select([fd], [], [], 0)[0])


def main() -> None:
    uid, point, directory, file, *text = sys.argv[1:]
    below = os.open(directory, os.O_PATH | os.O_DIRECTORY)
    check(libc.unshare(CLONE_NEWNS))
    check(libc.mount(None, b"/", None, MS_REC | MS_PRIVATE, None))
    fd = os.open("/dev/fuse", os.O_RDWR)
    options = f"fd={fd},rootmode=40000,user_id=0,group_id=0,allow_other,default_permissions"
    check(libc.mount(b"silent", point.encode(), b"fuse", 0, options.encode()))
    silent, tell = os.pipe()
    if os.fork() == 0:
        check(libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0))
        os.close(below)
        serve(fd, silent)
    os.close(fd)
    os.chroot(point)
    os.chdir("/")
    os.setgroups([])
    os.setresgid(int(uid), int(uid), int(uid))
    os.setresuid(int(uid), int(uid), int(uid))
    os.write(tell, b".")
    opened = os.open(file, os.O_WRONLY if text else os.O_RDONLY, dir_fd=below)
    if text:
        os.write(opened, text[0].encode())
    print("held", flush=True)
    signal.pause()


if __name__ == "__main__":
    main()
