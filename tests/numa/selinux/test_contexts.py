"""A worker has its caller's SELinux context. The policy is our own: policy.conf, in this directory."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from tests.attacks.callers import wait_for_worker
from tests.numa.selinux.contexts import CONFINE, SERVICE, context
from tests.support import filesystems
from tests.support.refusals import refusal

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.daemon import Mount
    from tests.support.shell import Outcome

NOBODY: Final = 65534
AS_NOBODY: Final = f"setpriv --reuid={NOBODY} --regid={NOBODY} --clear-groups"
UNTOUCHED: Final = b"x" * 4096
SLOW: Final = "length=1M chunk=4096 rate_max=1"


@pytest.fixture
def files(area: Path) -> Iterator[Path]:
    """A tmpfs, whose files have contexts."""
    with filesystems.tmpfs(area / "files", 64 << 20) as path:
        yield path


def labelled(path: Path, text: str) -> Path:
    """A new file with this context, open to all."""
    path.write_bytes(UNTOUCHED)
    path.chmod(0o666)
    os.setxattr(path, "security.selinux", text.encode())
    return path


def start(mount: Mount, caller: str, spec: str, prefix: str = "") -> Outcome:
    """``spec`` written to tasks/control by a process with the context ``caller``."""
    script = f'{CONFINE}confine "$1"; exec {prefix} bash -c \'echo "$0" > tasks/control\' "$2"'
    return mount.shell(script, caller, spec)


def refused(mount: Mount, caller: str, spec: str, prefix: str = "") -> str:
    """The words with which a start is refused to a process with this context."""
    found = refusal(mount, lambda named: start(mount, caller, named, prefix), spec, prefix)
    assert found.errname == "EACCES"
    return found.words


def end(mount: Mount, state: str = "done") -> None:
    assert mount.cat("tasks/t/wait").out.splitlines()[-1] == state, mount.read("tasks/t/error")


def context_of(pid: int) -> str:
    return Path(f"/proc/{pid}/attr/current").read_text().rstrip("\0")


@pytest.mark.parametrize("prefix", ["", AS_NOBODY], ids=["root", "user"])
def test_what_the_policy_denies_is_refused_and_the_rest_is_done(mounted: Mount, files: Path, prefix: str) -> None:
    secret = labelled(files / "secret", context("secret_t", role="object_r"))
    files.chmod(0o777)
    caller = context("staff_t")
    assert f"{secret}" in refused(mounted, caller, f"clear path={secret} length=4096", prefix)
    assert secret.read_bytes() == UNTOUCHED
    assert start(mounted, caller, f"fallocate name=t path={files}/open {SLOW}", prefix).status == 0
    assert context_of(wait_for_worker(mounted, "t")) == caller
    assert mounted.write("tasks/t/rate_max", "max") == (0, None)
    end(mounted)


def test_categories_part_two_containers(mounted: Mount, files: Path) -> None:
    """Like podman's container_t:s0:c1,c2: one domain, with separate categories for each."""
    theirs = labelled(files / "theirs", context("file_t", "s0:c0", role="object_r"))
    spec = f"clear path={theirs} length=4096"
    assert f"{theirs}" in refused(mounted, context("staff_t", "s0:c1"), spec)
    assert theirs.read_bytes() == UNTOUCHED
    assert start(mounted, context("staff_t", "s0:c0"), f"{spec} name=t").status == 0
    end(mounted)


def test_an_unconfined_caller_is_not_restricted(mounted: Mount, files: Path) -> None:
    """The daemon may not change to unconfined_t, and need not."""
    assert start(mounted, context("unconfined_t"), f"fallocate name=t path={files}/open {SLOW}").status == 0
    assert context_of(wait_for_worker(mounted, "t")) == SERVICE
    assert mounted.write("tasks/t/control", "cancel") == (0, None)
    end(mounted, "cancelled")


def test_a_domain_that_the_daemon_may_not_change_to_is_refused(mounted: Mount, files: Path) -> None:
    """This applies to every confined domain under the usual policies. An administrator may turn labels off."""
    caller, secret = context("lonely_t"), labelled(files / "secret", context("secret_t", role="object_r"))
    said = refused(mounted, caller, f"fallocate path={files}/new length=4096")
    assert f"cannot take over your security context {caller}: Permission denied" in said
    assert not (files / "new").exists()
    assert mounted.write("debug/ktask_label", "ignore") == (0, None)
    try:
        assert start(mounted, caller, f"clear path={secret} length=4096 name=t").status == 0
        end(mounted)
    finally:
        assert mounted.write("debug/ktask_label", "caller") == (0, None)


def test_a_domain_that_takes_no_signal_of_the_daemon_is_refused(mounted: Mount, files: Path) -> None:
    said = refused(mounted, context("deaf_t"), f"fallocate path={files}/new length=4096")
    assert "keeps it from getting SIGUSR1" in said
