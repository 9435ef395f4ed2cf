"""A worker has its caller's AppArmor profile."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from ktaskfs.errors import NotPermitted
from ktaskfs.host.becoming import become
from ktaskfs.host.credentials import Identity, read_caller
from ktaskfs.host.labels import APPARMOR
from tests.attacks.callers import wait_for_worker
from tests.numa import packages
from tests.support import filesystems
from tests.support.forked import run_forked
from tests.support.refusals import refusal

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.daemon import Mount
    from tests.support.shell import Outcome

NOBODY: Final = 65534
OWN: Final = Path("/proc/self/attr", APPARMOR)
ALL: Final = "file, capability, unix, network, signal, ptrace, mount,"
PROFILES: Final = f"""
abi <abi/3.0>,
#include <tunables/global>
profile kt-limited flags=(attach_disconnected) {{
  {ALL}
  deny /tmp/kt-*/files/secret* rwlk,
}}
profile kt-other {{
  {ALL}
  deny /tmp/kt-*/files/other* rwlk,
}}
profile kt-narrow {{
  #include <abstractions/base>
  /tmp/kt-*/** rw,
  /usr/bin/** rmix,
  @{{PROC}}/@{{pid}}/attr/{{,apparmor/}}current rw,
}}
profile kt-complains flags=(complain) {{ file, }}
profile kt-free flags=(unconfined) {{ file, }}
profile kt-deaf {{ file, unix, network, }}
profile kt-mute {{
  file,
  signal,
  network netlink,
}}
profile kt-blind {{
  {ALL}
  deny @{{PROC}}/meminfo r,
}}
profile kt-daemon {{ {ALL} change_profile -> kt-limited, }}
profile kt-gone {{ {ALL} }}
"""
CONFINE: Final = 'confine() { printf %s "changeprofile $1" > /proc/$BASHPID/attr/apparmor/current || exit 9; }\n'
"""A function of a shell: have this profile from now on."""
AS_NOBODY: Final = (f"setpriv --reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups")


def load(text: str, *options: str) -> None:
    """Load profiles into the kernel."""
    policy = packages.apparmor()
    parser = next(policy.glob("**/sbin/apparmor_parser"))
    command = [str(parser), "--replace", "--skip-cache", "--quiet", "--base", str(policy / "etc/apparmor.d"), *options]
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module", autouse=True)
def profiles() -> None:
    load(PROFILES)


@pytest.fixture
def files(area: Path) -> Iterator[Path]:
    """A tmpfs that the profiles know."""
    with filesystems.tmpfs(area / "files", 64 << 20) as path:
        yield path


def start(mount: Mount, profile: str, spec: str) -> Outcome:
    """``spec`` written to tasks/control by a process with this profile."""
    script = f'{CONFINE}confine "$1"; echo "$2" > tasks/control'
    return mount.shell(script, profile, spec)


def refused(mount: Mount, profile: str, spec: str) -> str:
    """The words with which a start is refused to a process with this profile."""
    found = refusal(mount, lambda named: start(mount, profile, named), spec)
    assert found.errname == "EACCES"
    return found.words


def label_of(pid: int) -> str:
    return Path(f"/proc/{pid}/attr", APPARMOR).read_text()


def end(mount: Mount, task: str = "t", state: str = "done") -> None:
    assert mount.cat(f"tasks/{task}/wait").out.splitlines()[-1] == state, mount.read(f"tasks/{task}/error")


def test_what_the_profile_denies_is_refused_and_the_rest_is_done(mounted: Mount, files: Path) -> None:
    secret = files / "secret"
    secret.write_bytes(b"untouched")
    for spec in (f"clear path={secret} length=4096", f"fallocate path={secret}-new length=4096"):
        assert f"{secret}" in refused(mounted, "kt-limited", spec)
    assert secret.read_bytes() == b"untouched"
    assert os.listdir(files) == ["secret"]
    slow = f"fallocate name=t path={files}/open length=1M chunk=4096 rate_max=1"
    assert start(mounted, "kt-limited", slow).status == 0
    assert label_of(wait_for_worker(mounted, "t")) == "kt-limited (enforce)\n"
    assert mounted.write("tasks/t/rate_max", "max") == (0, None)
    end(mounted)
    assert (files / "open").stat().st_blocks == 2048


def test_an_ordinary_user_has_the_profile(mounted: Mount, files: Path) -> None:
    script = f'{CONFINE}confine kt-limited; exec {" ".join(AS_NOBODY)} bash -c \'echo "$0" > tasks/control\' "$1"'
    slow = f"fallocate name=t path={files}/open length=1M chunk=4096 rate_max=1"
    assert mounted.shell(script, slow).status == 0
    worker = wait_for_worker(mounted, "t")
    assert label_of(worker) == "kt-limited (enforce)\n"
    assert f"\nUid:\t{NOBODY}\t" in Path(f"/proc/{worker}/status").read_text()
    assert mounted.write("tasks/t/control", "cancel") == (0, None)
    end(mounted, state="cancelled")


def test_what_a_profile_hides_is_named(mounted: Mount, files: Path) -> None:
    said = refused(mounted, "kt-blind", f"fallocate path={files}/open length=4096")
    assert "/proc/meminfo cannot be read: Permission denied" in said
    assert not (files / "open").exists()


def test_a_profile_with_few_rules_is_enough(mounted: Mount, files: Path) -> None:
    assert start(mounted, "kt-narrow", f"fallocate name=t path={files}/open length=4096").status == 0
    end(mounted)


def test_with_an_option_the_label_is_left_out(mounted: Mount, files: Path) -> None:
    assert mounted.read("debug/ktask_label") == "caller\n"
    assert mounted.write("debug/ktask_label", "ignore") == (0, None)
    try:
        assert start(mounted, "kt-limited", f"fallocate name=t path={files}/secret length=4096").status == 0
        end(mounted)
    finally:
        assert mounted.write("debug/ktask_label", "caller") == (0, None)


@pytest.mark.parametrize(
    ("profile", "has"),
    [
        ("kt-complains", "kt-complains (complain)"),
        ("kt-free", "unconfined"),
        ("kt-limited//&kt-other", "kt-limited//&kt-other (enforce)"),
        ("kt-other//&:kt-space:kt-inside", "kt-other//&:kt-space:kt-inside (enforce)"),
    ],
)
def test_kinds_of_labels(mounted: Mount, files: Path, profile: str, has: str) -> None:
    load(f"profile kt-inside {{ {ALL} }}", "--namespace", "kt-space")
    slow = f"fallocate name=t path={files}/open length=1M chunk=4096 rate_max=1"
    outcome = start(mounted, profile, slow)
    assert outcome.status == 0, mounted.read("info/last_cmd_status")
    assert label_of(wait_for_worker(mounted, "t")) == f"{has}\n"
    assert mounted.write("tasks/t/control", "cancel") == (0, None)
    end(mounted, state="cancelled")


def test_a_profile_that_is_gone_is_missed(mounted: Mount, files: Path) -> None:
    """The caller is unconfined then, but has opened the file before."""
    script = f'{CONFINE}confine kt-gone; exec 3> tasks/control; echo; read -r _; echo "$1" >&3'
    spec = f"fallocate name=t path={files}/open length=4096"
    with subprocess.Popen(
        ["bash", "-c", script, "bash", spec], cwd=mounted.path, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        Path("/sys/kernel/security/apparmor/.remove").write_text("kt-gone")
        process.communicate(b"\n")
    load(PROFILES)
    said = mounted.read("info/last_cmd_status" if process.returncode else "tasks/t/wait")
    said += "" if process.returncode else mounted.read("tasks/t/error")
    assert "cannot take over your AppArmor profile kt-gone: No such file" in said
    assert not (files / "open").exists()


@pytest.mark.parametrize(
    ("profile", "words"), [("kt-deaf", "keeps it from getting SIGUSR1"), ("kt-mute", "keeps the worker from answering")]
)
def test_a_label_that_parts_worker_and_daemon_is_refused(mounted: Mount, files: Path, profile: str, words: str) -> None:
    assert words in refused(mounted, profile, f"fallocate path={files}/open length=4096")
    assert mounted.write("tasks/control", f"fallocate name=t path={files}/open length=4096") == (0, None)
    end(mounted)


@pytest.mark.parametrize(
    ("wanted", "answer"),
    [
        ("kt-limited (enforce)", "kt-limited (enforce)"),
        ("kt-daemon (enforce)", "kt-daemon (enforce)"),
        ("kt-other (enforce)", "EACCES the worker cannot take over your AppArmor profile kt-other: Permission denied"),
    ],
)
def test_a_daemon_with_a_profile_of_its_own_needs_a_rule(wanted: str, answer: str) -> None:
    caller = read_caller(os.getpid(), 0, 0)
    fields = caller.identity.to_fields() | {"label": {"module": APPARMOR, "text": wanted}}

    def body() -> str:
        OWN.write_text("changeprofile kt-daemon")
        try:
            become(Identity.from_fields(fields), caller.root, caller.cwd)
        except NotPermitted as error:
            return f"{error.errname} {error.message}"
        return OWN.read_text().strip()

    try:
        assert run_forked(body).startswith(answer)
    finally:
        caller.close()
