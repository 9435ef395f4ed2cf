"""A daemon as a service under SELinux: allowed everything, in a separate domain."""

from __future__ import annotations

import os
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from tests.numa import packages
from tests.numa.guest.conftest import as_a_service, daemon_for_all, mounted
from tests.numa.selinux.contexts import CONFINE, SERVICE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.daemon import Mount

__all__ = ["mounted"]

KERNEL: Final = Path("/sys/fs/selinux")
FORMAT: Final = "33"
"""A version of policies that Linux takes since 5.9. The compiler of Debian 13 can write one that its kernel refuses."""


@pytest.fixture(scope="session")
def policy() -> None:
    """From now on the kernel has the policy, and enforces it."""
    subprocess.run(["mount", "-t", "selinuxfs", "selinuxfs", KERNEL], check=True)
    with tempfile.TemporaryDirectory(prefix="kt-") as name:
        binary, source = Path(name, "policy"), Path(__file__).with_name("policy.conf")
        compiler = packages.checkpolicy() / "usr/bin/checkpolicy"
        words = ("-M", "-c", FORMAT, "-U", "allow", "-o")
        subprocess.run([compiler, *words, binary, source], check=True, capture_output=True)
        for file, content in (("load", binary.read_bytes()), ("enforce", b"1")):
            fd = os.open(KERNEL / file, os.O_WRONLY)
            assert os.write(fd, content) == len(content)  # the kernel takes a policy in one piece
            os.close(fd)


@pytest.fixture(scope="session")
def shared(policy: None) -> Iterator[Mount]:
    """One daemon for all, which any user may use."""
    confined = ("bash", "-c", f'{CONFINE}confine "$0"; exec "$@"', SERVICE)
    with daemon_for_all((*confined, *as_a_service())) as mount:
        yield mount
