"""The answers of the modules on this machine if there is no mount, or if arguments are wrong."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from tests.ansible.plays import Ansible

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Call = Callable[..., dict[str, Any]]


@pytest.fixture
def call(newest: Path, collections: Path, tmp_path: Path) -> Call:
    """``call(module, *options, **arguments)`` returns the module's result for a directory without a mount."""
    ansible = Ansible(newest, collections, tmp_path)

    def run_module(module: str, *options: str, **arguments: Any) -> dict[str, Any]:
        words = ["localhost", "--inventory=localhost,", "--connection=local", f"--module-name=ktaskfs.host.{module}"]
        given = json.dumps({"mount": str(tmp_path), **arguments})
        variable = "--extra-vars=ansible_python_interpreter=/usr/bin/python3"
        done = ansible("ansible", *words, variable, f"--args={given}", *options)
        answer: dict[str, Any] = json.loads((done.out or done.err).partition("=>")[2])
        return {**answer, "failed": done.status != 0}

    return run_module


def test_without_a_mount(call: Call, tmp_path: Path) -> None:
    """In check mode, the play might mount ktaskfs before."""
    words = f"no ktaskfs is mounted on {tmp_path}"
    spec = {"name": "vm0", "op": "fallocate", "params": {"path": "/dev/shm/vm0", "length": "1M"}}
    answer = call("task", **spec)
    assert (answer["failed"], answer["changed"], answer["errno"], answer["msg"]) == (True, False, "ENOENT", words)
    assert call("task", **{**spec, "params": None})["msg"] == words, "params: without any"
    answer = call("task", "--check", **spec)
    assert (answer["failed"], answer["changed"], answer["actions"]) == (False, True, ["start"])
    answer = call("info")
    assert (answer["failed"], answer["mounted"]) == (False, False)


def test_wrong_arguments(call: Call) -> None:
    assert "state is done but all of the following are missing: op" in call("task", name="vm0")["msg"]
    answer = call("task", name="vm0", op="clear", params={"path": "/dev/shm/vm0", "plan": 1, "name": "vm1"})
    assert answer["msg"] == "params has name, plan, which the module gives itself"
