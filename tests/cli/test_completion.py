"""``ktaskfs completion``: the candidates for the next word, in real shells."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.shell import run
from tests.support.slow import start_slow, stop
from tests.support.terminal import Terminal

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.cli.conftest import Command
    from tests.support.daemon import Mount

PROGRAMS = Path(sys.executable).parent
OPERATIONS_WITH_C = ["checksum", "clear", "collapse", "compare", "copy"]


def environment(mount: Mount) -> dict[str, str]:
    """Variables with which a shell finds the command and the mount."""
    return {"PATH": f"{PROGRAMS}:{os.environ['PATH']}", "KTASKFS": str(mount.path)}


@pytest.fixture
def words(command: Command) -> Callable[..., list[str]]:
    """Returns the candidates for the last of the words."""

    def asked(*arguments: str) -> list[str]:
        outcome = run("ktaskfs", "completion", "words", *arguments, env=environment(command.mount))
        assert (outcome.status, outcome.err) == (0, "")
        return outcome.out.splitlines()

    return asked


def test_commands_and_options(words: Callable[..., list[str]]) -> None:
    assert words("d") == ["doctor"]
    assert "--version" in words("--")
    assert words("run", "--if") == ["--if-exists"]
    ways = ["resume", "replace", "rerun"]
    assert words("run", "--if-exists", "re") == words("run", "--quiet", "--if-exists", "re") == ways
    assert words("run", "--if-exists=j") == ["--if-exists=join"]
    assert words("nonsense", "") == []
    assert words("completion", "") == ["bash", "zsh", "fish"]


def test_a_mount_at_a_path_with_a_blank(
    command: Command, words: Callable[..., list[str]], area: Path, root: None
) -> None:
    """The kernel's table of mounts has it in octal."""
    path = area / "a b\\c"
    path.mkdir()
    subprocess.run(["mount", "--bind", command.mount.path, path], check=True)
    try:
        assert str(path) in words("show", "-m", str(area))
    finally:
        subprocess.run(["umount", path], check=True)


def test_hosts(command: Command, words: Callable[..., list[str]], memory: Path) -> None:
    (memory / ".ssh").mkdir()
    (memory / ".ssh/config").write_text("Host hv1 hv2 *.example !x\n HostName=10.0.0.1\nhost=gw1\n")
    (memory / ".ssh/known_hosts").write_text("|1|abc= ssh-rsa x\nhv3,10.0.0.3 ssh-rsa x\n@revoked * ssh-rsa x\n")
    home = {**environment(command.mount), "HOME": str(memory)}
    asked = ["ktaskfs", "completion", "words", "run", "--hosts"]
    assert run(*asked, "hv", env=home).out.split()[:3] == ["hv1", "hv2", "hv3"]
    assert run(*asked, "hv9,g", env=home).out == "hv9,gw1\n"
    assert {"--hosts", "--fanout", "--batch", "--max-failed", "--topology"} <= set(words("run", "--"))
    assert {"--hosts", "--remote"} <= set(words("ls", "--")) & set(words("doctor", "--"))
    assert words("run", "--hosts", "hv1", "--fanout", "5", "--via", "x", "c") == OPERATIONS_WITH_C


def test_operations_parameters_and_values(words: Callable[..., list[str]], memory: Path) -> None:
    assert words("run", "c") == words("run", "--json", "c") == OPERATIONS_WITH_C
    assert words("run", "checksum", "a") == ["algorithm="]
    assert "path=" not in words("run", "checksum", "path=/x", "")
    algorithms = words("run", "checksum", "algorithm=")
    assert {"algorithm=crc32", "algorithm=blake3", "algorithm=sha256sum"} <= set(algorithms)
    assert words("run", "checksum", "undo=") == ["undo=0", "undo=1"]
    assert words("run", "checksum", "rate_max=") == ["rate_max=max"]
    assert words("run", "checksum", "length=") == []
    assert "size=2M" in words("run", "reserve", "size=")
    assert "nodes=0" in words("run", "migrate", "nodes=")
    assert words("run", "checksum", f"path={memory}/f") == [f"path={memory}/file"]
    assert words("run", "checksum", f"path={memory.parent}/mem") == [f"path={memory}/"]
    assert words("run", "nonsense", "") == []


def test_names_of_files_that_are_not_utf_8_or_not_one_line(command: Command, memory: Path) -> None:
    for name in (b"odd\xff", b"odd\nname"):
        (memory / os.fsdecode(name)).touch()
    asked = ["ktaskfs", "completion", "words", "run", "checksum", f"path={memory}/odd"]
    said = subprocess.run(asked, env=environment(command.mount), capture_output=True, check=True)
    assert (said.stdout, said.stderr) == (b"path=%b/odd\xff\n" % os.fsencode(memory), b"")


def test_names_of_tasks_that_the_command_is_for(
    command: Command, words: Callable[..., list[str]], memory: Path, area: Path
) -> None:
    assert command("run", "--quiet", "checksum", f"path={memory}/file", "name=sum").status == 0
    start_slow(command.mount, memory, "slow")
    for verb, names in (
        *(("show", ["slow", "sum"]), ("ls", ["slow", "sum"]), ("pause", ["slow"]), ("resume", [])),
        *(("doctor", []), ("top", []), ("pool", ["save"])),
    ):
        assert words(verb, "") == names
    assert words("show", "slow", "s") == ["sum"]
    assert words("set", "slow", "n") == ["nice="]
    assert words("pause", "-m", str(area), "") == words("pause", f"--mount={area}", "") == []
    assert str(command.mount.path) in words("pause", "-m", str(area))
    assert str(command.mount.path) in words("-m", str(area))
    assert words("-m", str(area), "to") == words(f"--mount={area}", "to") == words(f"-m{area}", "to") == ["top"]
    assert {"-m", "--mount"} <= set(words("-"))
    for glued in ("-m", "--mount="):
        assert f"{glued}{command.mount.path}" in words(f"{glued}{area}")
        assert f"{glued}{command.mount.path}" in words("pause", f"{glued}{area}")
        assert words("pause", f"{glued}{area}", "") == []
        assert words("pause", "-m", str(area), f"{glued}{command.mount.path}", "") == ["slow"]
    assert words("-m", str(command.mount.path), "run", "c") == OPERATIONS_WITH_C
    stop(command.mount, "slow")
    assert words("resume", "") == ["slow"]


BASH = r"""
eval "$(ktaskfs completion bash)"
COMP_LINE=$1 COMP_POINT=${#1}
_ktaskfs
printf '%s\n' "${COMPREPLY[@]}"
"""


def test_bash_gets_what_comes_after_the_sign_of_equality(command: Command, memory: Path) -> None:
    (memory / "a b").touch()

    def replies(line: str) -> list[str]:
        outcome = run("bash", "-c", BASH, "bash", line, env=environment(command.mount))
        assert (outcome.status, outcome.err) == (0, "")
        return outcome.out.splitlines()

    assert replies("ktaskfs run checksum alg") == ["algorithm="]
    assert replies("ktaskfs run checksum algorithm=bl") == ["blake3 "]
    assert replies(f"ktaskfs run checksum path={memory}/f") == [f"{memory}/file "]
    assert replies(f"ktaskfs run checksum path={memory}/a\\ ") == [f"{memory}/a\\ b "]
    assert replies(f"ktaskfs run checksum path={memory}/a' 'name=x alg") == ["algorithm="]
    assert replies("ktaskfs run checksum ")[0] == "name="


def test_bash_at_a_terminal(command: Command, memory: Path) -> None:
    with Terminal("bash", "--norc", "--noprofile", "-i", env=environment(command.mount)) as terminal:
        terminal.type('eval "$(ktaskfs completion bash)"; echo lo""aded\n')
        terminal.sees("loaded")
        terminal.type(f"ktaskfs run -q checks\tpat\t{memory}/fi\tname=sum 2>&1 | sed s/^/said:/\n")
        terminal.sees("said:crc32 ")
        terminal.type("exit\n")
        terminal.end()
    assert command.mount.read("tasks/sum/path") == f"{memory}/file\n"


@pytest.mark.parametrize("name", ["a b", "it's", 'a"$b`c\\d'])
@pytest.mark.parametrize("quote", ["'", '"'])
def test_bash_in_an_open_quote(command: Command, memory: Path, name: str, quote: str) -> None:
    (memory / f"x{name}").write_text("x")
    with Terminal("bash", "--norc", "--noprofile", "-i", env=environment(command.mount), columns=200) as terminal:
        terminal.type('eval "$(ktaskfs completion bash)"; echo lo""aded\n')
        terminal.sees("loaded")
        terminal.type(f"ktaskfs run -q check\tpath={quote}{memory}/x\tname=sum 2>&1 | sed s/^/said:/\n")
        terminal.sees("said:crc32 ")
        terminal.type("exit\n")
        terminal.end()
    assert command.mount.read("tasks/sum/state") == "done\n"


def test_zsh_at_a_terminal(command: Command, memory: Path) -> None:
    with Terminal("zsh", "-f", "-i", env=environment(command.mount)) as terminal:
        terminal.type("autoload -U compinit; compinit -u -D\n")
        terminal.type('eval "$(ktaskfs completion zsh)"; echo lo""aded\n')
        terminal.sees("loaded")
        terminal.type(f"ktaskfs run -q checks\tpat\t{memory}/fi\tname=sum 2>&1 | sed s/^/said:/\n")
        terminal.sees("said:crc32 ")
        terminal.type("exit\n")
        terminal.end()
    assert command.mount.read("tasks/sum/path") == f"{memory}/file\n"


def test_fish(command: Command, memory: Path) -> None:
    def replies(line: str) -> list[str]:
        script = "ktaskfs completion fish | source; complete --do-complete $argv[1]"
        outcome = run("fish", "--no-config", "-c", script, line, env=environment(command.mount))
        assert (outcome.status, outcome.err) == (0, "")
        return [each.split("\t")[0] for each in outcome.out.splitlines()]

    assert replies("ktaskfs run c") == OPERATIONS_WITH_C
    assert replies("ktaskfs run checksum algorithm=bl") == ["algorithm=blake3"]
    assert replies(f"ktaskfs run checksum path={memory}/f") == [f"path={memory}/file"]
