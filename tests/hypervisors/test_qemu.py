"""A guest on memory that ktaskfs has allocated takes not a page more: as docs/how-to/hypervisor.md starts it."""

from __future__ import annotations

import functools
import json
import re
import shlex
import socket
import subprocess
from typing import TYPE_CHECKING, Any, Final

from tests.support.daemon import ROOT
from tests.support.hugepages import reserved, smallest_pages
from tests.support.poll import until
from tests.support.refusals import refusal

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.daemon import Mount

MEMORY: Final = 64 << 20
PAGE: Final = ROOT / "docs/how-to/hypervisor.md"


def asked(monitor: socket.socket, command: str) -> Any:
    """The answer of QEMU's monitor, without events."""
    with monitor.makefile("rw") as file:
        file.write(json.dumps({"execute": command}))
        file.flush()
        for line in file:
            if "return" in (answer := json.loads(line)):
                return answer["return"]
    raise EOFError("QEMU has ended")


@smallest_pages
def test_a_guest_on_allocated_memory(mounted: Mount, hugetlbfs: Path, page_size: int, area: Path) -> None:
    pages = MEMORY // page_size
    with reserved(page_size, pages) as pool:
        spec = f"fallocate path={hugetlbfs}/guest length={MEMORY} name=guest"
        assert mounted.write("tasks/control", spec) == (0, None)
        assert mounted.read("tasks/guest/wait").endswith("done\n")
        before = pool.free, pool.reserved
        shown = re.search(r"(?s)    qemu-system-x86_64 (.*?) …", PAGE.read_text())
        assert shown is not None
        words = shown[1].replace("\\\n", " ").replace("64G", f"{MEMORY >> 20}M")
        command = ["qemu-system-x86_64", *shlex.split(words.replace("/dev/hugepages", str(hugetlbfs)))]
        command += ["-accel", "tcg", "-display", "none", "-nodefaults", "-no-user-config"]
        command += ["-qmp", f"unix:{area}/qmp,server=on,wait=off"]
        with subprocess.Popen(command) as qemu, socket.socket(socket.AF_UNIX) as monitor:
            try:
                until(lambda: qemu.poll() is not None or monitor.connect_ex(f"{area}/qmp") == 0, "QEMU listens")
                monitor.recv(4096)  # its greeting
                assert asked(monitor, "qmp_capabilities") == {}
                assert asked(monitor, "query-status")["status"] == "running"
                assert asked(monitor, "query-memdev")[0]["size"] == MEMORY
                assert (pool.free, pool.reserved) == before
                start = functools.partial(mounted.shell, 'echo "$1" > tasks/control')
                refused = refusal(mounted, start, f"clear path={hugetlbfs}/guest")
                assert refused.errname == "EBUSY"
                assert "is in use by qemu-system" in refused.words
                asked(monitor, "quit")
                assert qemu.wait() == 0
            finally:
                qemu.kill()
        assert mounted.write("tasks/control", f"clear path={hugetlbfs}/guest name=scrub") == (0, None)
        assert mounted.read("tasks/scrub/wait").endswith("done\n")
        (hugetlbfs / "guest").unlink()
