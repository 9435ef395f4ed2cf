"""An attacker: holds a lease on FILE, which delays everybody else's open(2) of the same inode. Prints ``held``."""

from __future__ import annotations

import fcntl
import os
import signal
import sys

signal.signal(signal.SIGIO, signal.SIG_IGN)
fd = os.open(sys.argv[1], os.O_RDONLY)
fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
print("held", flush=True)
while True:
    signal.pause()
