"""``ktaskfs run`` and ``ktaskfs wait`` in scripts: what they start, print and return."""

from __future__ import annotations

import json
import os
import signal
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from ktaskfs.cli.mounted import Mounted
from ktaskfs.errors import Refused, TargetError
from tests.cli.conftest import until_said
from tests.support.daemon import ROOT, Mount
from tests.support.poll import DEADLINE, until
from tests.support.processes import halt
from tests.support.shell import Outcome, run
from tests.support.slow import start_slow, stop

if TYPE_CHECKING:
    from pathlib import Path

    from tests.cli.conftest import Command
    from tests.support.users import User

pytestmark = pytest.mark.usefixtures("patient")


def objects(outcome: Outcome) -> list[dict[str, Any]]:
    return [json.loads(line) for line in outcome.out.splitlines()]


def test_the_result_is_on_standard_output_and_the_course_on_standard_error(command: Command, memory: Path) -> None:
    outcome = command("run", "checksum", f"path={memory}/file", "name=sum")
    assert outcome.status == 0
    assert outcome.out == command.mount.read("tasks/sum/result")
    assert outcome.err.splitlines()[-1].startswith("sum: done 64.0KiB in ")


def test_quiet_says_the_result_alone(command: Command, memory: Path) -> None:
    outcome = command("run", "--quiet", f"checksum path={memory}/file name=sum")
    assert outcome == Outcome(0, command.mount.read("tasks/sum/result"), "")


def test_words_are_quoted(command: Command, memory: Path) -> None:
    for number, name in enumerate(["a file", "it's", 'q"uote', "back\\slash", "caf\udce9", "$HOME;*", "line\nbreak"]):
        (memory / name).write_bytes(b"x" * 4096)
        outcome = command("run", "--json", "checksum", f"path={memory}/{name}", f"name=sum{number}")
        assert (outcome.status, objects(outcome)[-1]["total"]) == (0, 4096), outcome


def test_a_relative_path_is_the_caller_s(command: Command, memory: Path) -> None:
    words = command.words("run", "--quiet", "checksum", "path=file")
    assert run(*words, cwd=memory, env={"PYTHONPATH": str(ROOT)}).status == 0


@pytest.mark.parametrize("form", ["words", "objects", "list"])
def test_specs_from_standard_input_start_together(command: Command, memory: Path, form: str) -> None:
    path = f"{memory}/file"
    specs = [{"op": "checksum", "path": path, "name": name} for name in ("one", "two")]
    text = {
        "words": f"checksum path={path} name=one\nchecksum path='{path}' name=two\n",
        "objects": "\n".join(map(json.dumps, specs)),
        "list": json.dumps(specs, indent=1),
    }[form]
    for options in ([], ["--if-exists=join"], ["--if-exists=replace"]):
        outcome = command("run", "--quiet", *options, "-", stdin=text)
        digest = command.mount.read("tasks/one/result")
        assert outcome == Outcome(0, f"==> one <==\n{digest}==> two <==\n{digest}", "")
    refused = command("run", "-", stdin=f"checksum path={path} name=three\nchecksum path={memory}/none\n")
    assert refused.status == 1
    assert not (command.mount.path / "tasks/three").exists()


def test_a_refusal_shows_the_words_of_the_mount_and_the_caret(command: Command, memory: Path) -> None:
    outcome = command("run", "checksum", f"path={memory}/file", "lenth=5")
    spec = f"  checksum path={memory}/file lenth=5"
    assert (outcome.status, outcome.out) == (1, "")
    message, line, caret = outcome.err.splitlines()
    assert message.startswith("ktaskfs: checksum has no parameter 'lenth'; it takes ")
    assert line == spec
    assert caret == f"{' ' * spec.index('lenth')}{'^' * len('lenth=5')}"
    assert command("run", "checksum", f"path={memory}/none").err.splitlines()[0].endswith("No such file or directory")


def test_a_refusal_as_json(command: Command, memory: Path) -> None:
    outcome = command("run", "--json", "checksum", f"path={memory}/none")
    (found,) = objects(outcome)
    assert (outcome.status, outcome.err) == (1, "")
    assert (found["state"], found["errno"], found["name"]) == ("refused", 2, None)
    assert found["error"].endswith("No such file or directory")
    assert found["command"] == f"checksum path={memory}/none"


@pytest.mark.parametrize("text", ['{"op": "clear", "path": "/x"', '[{"op": "clear", "path": "/x"}'])
def test_json_that_ends_early_is_refused_with_its_words(command: Command, text: str) -> None:
    """The daemon waits for more of it, until the command closes the file."""
    for outcome in (command("run", text), command("run", "-", stdin=text)):
        assert (outcome.status, outcome.out) == (1, "")
        message, line, caret = outcome.err.splitlines()
        assert (message, line) == ("ktaskfs: the JSON ends early", f"  {text}")
        assert len(caret) == len(line)


class Wordless(Mounted):
    def read(self, file: str) -> str:
        if file == "info/error_log":
            raise TargetError(file)
        return super().read(file)


def test_a_refusal_at_the_last_close_counts_also_without_words(command: Command) -> None:
    with pytest.raises(Refused, match="tasks/control: Invalid argument"):
        Wordless(str(command.mount.path)).start('{"op": "clear"')


def test_a_refusal_of_a_nul_byte_has_its_words(command: Command) -> None:
    assert command("run", "-", stdin="clear\0x").err.splitlines()[0] == "ktaskfs: the command has a NUL byte"


def test_a_long_command_does_not_flood_the_terminal(command: Command) -> None:
    """The excerpt has what the caret is below."""
    lines = command("run", f"clear path=/{'x' * 1500} wrong=1 name={'y' * 1500}").err.splitlines()
    assert len(lines) == 3
    assert max(map(len, lines)) < 450
    assert lines[1][lines[2].index("^") : lines[2].rindex("^") + 1] == "wrong=1"


@pytest.mark.parametrize("options", [[], ["--plan"], ["--detach"], ["--if-exists=join"], ["--if-exists=replace"]])
def test_an_empty_list_is_no_work(command: Command, options: list[str]) -> None:
    assert command("run", *options, "[]") == Outcome(0, "", "")


def test_what_is_no_spec_cancels_nothing(command: Command, slow: str) -> None:
    for options in ([], ["--json"], ["--if-exists=join"]):
        outcome = command("run", *options, "cancel")
        assert outcome.status == 2
        assert outcome.err.startswith("ktaskfs: cancel is not a spec")
    assert command.mount.read(f"tasks/{slow}/state") == "running\n"


@pytest.mark.parametrize("words", [["-"], [""], [" "]])
def test_no_specification(command: Command, words: list[str]) -> None:
    assert command("run", *words, stdin="\n") == Outcome(2, "", "ktaskfs: there is no specification\n")


def test_no_mount(command: Command, area: Path) -> None:
    for words in (["run", "checksum", "path=/x"], ["wait", "x"]):
        outcome = run(*command.words(*words)[:4], "-m", str(area), *words[1:], cwd=ROOT)
        assert (outcome.status, outcome.err.count("\n")) == (1, 1)
        assert outcome.err.startswith(f"ktaskfs: no ktaskfs is mounted on {area}: systemctl start ktaskfs")


def test_the_mount_is_that_of_the_environment(command: Command, memory: Path) -> None:
    words = command.words("run", "--quiet", "checksum", f"path={memory}/file")
    del words[4:6]
    assert run(*words, cwd=ROOT, env={"KTASKFS": str(command.mount.path)}).status == 0


def test_json_is_an_object_a_line_of_which_the_last_has_all(command: Command, memory: Path) -> None:
    outcome = command("run", "--json", "checksum", f"path={memory}/file", "name=sum")
    found = objects(outcome)
    assert (outcome.status, outcome.err) == (0, "")
    assert {each["name"] for each in found} == {"sum"}
    assert all(each["state"] in ("starting", "running") and each["result"] is None for each in found[:-1])
    last = json.loads(command.mount.read("tasks/sum/stat.json"))
    assert found[-1] == last | {"result": command.mount.read("tasks/sum/result"), "stale": False}


def test_the_status_says_how_it_ended(command: Command, memory: Path) -> None:
    mount = command.mount
    failed = command("run", "verify", f"path={memory}/file", "pattern=00", "name=wrong")
    assert failed.status == 1
    assert failed.err.splitlines()[-1].startswith("ktaskfs: wrong failed: EIO")

    start_slow(mount, memory, "one")
    with command.started("run", "--if-exists=join", "clear", f"path={memory}/slow-one", "name=one") as follower:
        mount.write("tasks/one/control", "cancel")
        assert follower.wait(DEADLINE) == 3
        assert "one was cancelled" in follower.communicate()[1]

    start_slow(mount, memory, "two")
    with command.started("wait", "two") as follower:
        mount.write("tasks/two/control", "kill")
        assert follower.wait(DEADLINE) == 4

    assert command("wait", "one", "two", "wrong").status == 1
    assert command("wait", "one", "two").status == 4
    assert command("run", "--quiet", "checksum", f"path={memory}/file", "name=good").status == 0
    assert command("wait", "--quiet", "good", "one").status == 3
    assert command("wait", "no*").err == "ktaskfs: no task matches no*\n"


def test_a_task_that_is_removed_meanwhile(command: Command, slow: str) -> None:
    with command.started("wait", slow) as follower:
        until_said(follower.stderr, f"{slow}: running")
        command.mount.write(f"tasks/{slow}/control", "pause")
        until_said(follower.stderr, f"{slow}: paused")
        (looking,) = psutil.Process(follower.pid).children()
        looking.suspend()
        stop(command.mount, slow)
        (command.mount.path / f"tasks/{slow}").rmdir()
        (command.mount.path / f"tasks/{slow}").mkdir()  # another, of the same name
        looking.resume()
        assert follower.wait(DEADLINE) == 1
        assert f"{slow} was removed, or has ended and was not kept" in follower.communicate()[1]
    (command.mount.path / f"tasks/{slow}").rmdir()


def test_detach_prints_the_names(command: Command, memory: Path) -> None:
    spec = f"clear path={memory}/file name=left rate_max=1K chunk=4K"
    assert command("run", "--detach", spec) == Outcome(0, "left\n", "")
    stop(command.mount, "left")
    outcome = command("run", "--detach", "--json", "--if-exists=join", f"clear path={memory}/file name=left")
    assert [(each["name"], each["state"]) for each in objects(outcome)] == [("left", "cancelled")]


def test_a_plan_touches_nothing(command: Command, memory: Path) -> None:
    path = f"{memory}/new"
    for spec in (f"fallocate path={path} length=1M", f'{{"op": "fallocate", "path": "{path}", "length": 4096}}'):
        outcome = command("run", "--quiet", "--plan", spec)
        assert outcome.status == 0
        assert f"creates {memory}/new\n" in outcome.out
    refused = command("run", "--plan", f"fallocate path={memory}/new length=1M plan=0")
    assert (refused.status, "'plan' is given twice" in refused.err) == (1, True)
    assert command("run", "--plan", f"fallocate path='{memory}/new length=1M").status == 1
    assert not (memory / "new").exists()


def test_an_existing_name(command: Command, memory: Path, slow: str) -> None:
    spec = [f"path={memory}/slow-{slow}", f"name={slow}", "rate_max=max", "chunk=0x1000"]
    refused = command("run", "clear", *spec).err
    assert refused.startswith("ktaskfs: a task slow exists: follow it with --if-exists=join, ")
    assert "a task slow exists" in command("run", "--if-exists=replace", "clear", *spec).err
    for other in (["fill", *spec, "pattern=00"], ["clear", *spec, "length=4096"], ["clear", *spec[1:], "path=/other"]):
        outcome = command("run", "--if-exists=join", *other)
        assert outcome.status == 1
        assert "the task slow exists already, with " in outcome.err

    with command.started("run", "--if-exists=resume", "clear", *spec) as follower:
        assert "slow: running" in str(follower.stderr and follower.stderr.readline())
        stop(command.mount, slow)
        assert follower.wait(DEADLINE) == 3
    assert command("run", "--if-exists=join", "clear", *spec).status == 3
    command.mount.write(f"tasks/{slow}/rate_max", "max")
    assert command("run", "--if-exists=resume", "clear", *spec).status == 0
    assert command("run", "--if-exists=resume", "clear", *spec).status == 0

    assert command("run", "--if-exists=replace", "checksum", f"path={memory}/file", f"name={slow}").status == 0
    assert command.mount.read(f"tasks/{slow}/op") == "checksum\n"


@pytest.mark.parametrize("way", ["fail", "join", "resume", "replace", "rerun"])
def test_the_work_comes_after_its_plan(command: Command, memory: Path, way: str) -> None:
    """A plan is no work that could be joined, so its name is free."""
    spec = ["clear", f"path={memory}/file", "name=c"]
    for _ in range(2):
        assert command("run", "--plan", *spec).status == 0
    assert command("run", "--if-exists", way, *spec).status == 0
    assert command.mount.read("tasks/c/state") == "done\n"
    assert command("run", "--plan", *spec).status == 1, "a task that has worked keeps its name"
    outcome = command("run", "--quiet", "--plan", "--if-exists=rerun", *spec)
    assert (outcome.status, outcome.out[:16]) == (0, "operation clear\n")
    assert command.mount.read("tasks/c/state") == "done\n"


def test_two_commands_at_once_have_one_task(command: Command, memory: Path) -> None:
    words = ["run", "--if-exists=join", "checksum", f"path={memory}/file", "name=one"]
    both = [command.started(*words) for _ in range(4)]
    assert [each.wait(DEADLINE) for each in both] == [0, 0, 0, 0], [each.communicate() for each in both]
    for each in both:
        each.communicate()


def test_control_c_cancels_and_a_second_one_leaves(command: Command, memory: Path) -> None:
    spec = f"clear path={memory}/file rate_max=1K chunk=4K"
    with command.started("run", f"{spec} name=once") as follower:
        assert follower.stderr is not None
        assert follower.stderr.readline().startswith("once: ")
        follower.send_signal(signal.SIGINT)
        assert follower.wait(DEADLINE) == 130
    assert command.mount.read("tasks/once/state") == "cancelled\n"

    with command.started("run", f"{spec} name=twice") as follower:
        assert follower.stderr is not None
        until(lambda: command.mount.cat("tasks/twice/state").out == "running\n", "it runs")
        worker = json.loads(command.mount.read("tasks/twice/stat.json"))["pid"]
        halt(worker)  # as in a chunk that takes long
        try:
            follower.send_signal(signal.SIGINT)
            while not follower.stderr.readline().startswith("cancelling"):
                pass
            follower.send_signal(signal.SIGINT)
            assert follower.wait(DEADLINE) == 130
            words = f"follow them with: ktaskfs wait -m {command.mount.path} twice\n"
            assert words in follower.stderr.read()
            assert command.mount.read("tasks/twice/state") == "running\n"
        finally:
            os.kill(worker, signal.SIGCONT)
    command.mount.read("tasks/twice/wait")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_another_signal_ends_the_command_alone(command: Command, slow: str, number: signal.Signals) -> None:
    with command.started("wait", slow) as follower:
        assert follower.stderr is not None
        assert follower.stderr.readline().startswith(f"{slow}: running")
        follower.send_signal(number)
        assert follower.wait(DEADLINE) == -number
        assert follower.stderr.read() == ""  # its end: both processes have ended
    assert command.mount.read(f"tasks/{slow}/state") == "running\n"


def test_control_c_in_wait_leaves_the_task(command: Command, slow: str) -> None:
    with command.started("wait", slow) as follower:
        assert follower.stderr is not None
        follower.stderr.readline()
        follower.send_signal(signal.SIGINT)
        assert follower.wait(DEADLINE) == 130
    assert command.mount.read(f"tasks/{slow}/state") == "running\n"


def test_a_reader_that_goes_away_stops_nothing(command: Command, memory: Path, slow: str) -> None:
    words = ["run", "--json", "--if-exists=join", "clear", f"path={memory}/slow-{slow}", f"name={slow}"]
    with command.started(*words) as follower:
        assert follower.stdout is not None
        follower.stdout.readline()
        follower.stdout.close()
        assert follower.wait(DEADLINE) == -signal.SIGPIPE
    assert command.mount.read(f"tasks/{slow}/state") == "running\n"


def test_an_ordinary_user(mounted: Mount, command: Command, two_users: tuple[User, User], public_root: Path) -> None:
    outcome = run(*command.words("run", "checksum", "path=/etc/hostname"), user=two_users[0], cwd=public_root)
    assert (outcome.status, outcome.err.count("\n")) == (1, 1)
    words = "tasks/control: Permission denied: ktaskfs doctor shows who may start tasks\n"
    assert outcome.err.endswith(words)


def test_nothing_heavy_is_imported(command: Command, memory: Path) -> None:
    """Otherwise a start would cost more than some 10 ms of CPU beside the interpreter's own."""
    words = command.words("run", "--quiet", "checksum", f"path={memory}/file")
    outcome = run(words[0], "-X", "importtime", *words[1:], cwd=ROOT)
    imported = {line.rpartition("|")[2].strip() for line in outcome.err.splitlines()}
    assert "ktaskfs.cli.run" in imported
    assert {"rich", "trio", "pyfuse3", "asyncio", "psutil", "ktaskfs.config", "ktaskfs.units"} & imported == set()
