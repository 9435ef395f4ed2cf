#!/usr/bin/python
# Copyright (c) 2026, The ktaskfs authors
# MIT License (see LICENSE, or https://opensource.org/license/mit)
# SPDX-License-Identifier: MIT
"""The module task: brings a task of ktaskfs into a state."""

from __future__ import annotations

DOCUMENTATION = r"""
module: task
short_description: Start, follow, cancel or forget a task of ktaskfs
version_added: 0.1.0
description:
  - Brings a task of ktaskfs into a state. The name of the task is the key.
  - A task of that name that does the same work is not started again while it is at work, or when it is done and its
    work is still there. Parameters are compared by what they mean, so C(64G) and C(68719476736) are the same.
  - A task that ended early (failed, cancelled, interrupted) does the rest of its work. If the rest cannot be done
    alone, the whole work is done again. A paused task continues.
  - A task that has ended and did other work is replaced. If it is still at work, the module fails.
  - A C(fallocate) or C(reserve) that is done is started again if a part of the memory or of the pool is missing.
    A C(copy) is started again if its file is gone or has become smaller. These and all other operations, apart from
    C(fallocate), are started again if a path now leads to another file than the one that the task worked on.
    A file that is gone is left alone, unless the operation makes it.
  - The module does not see other changes of the contents; see O(rerun).
  - The module reads and writes the files of the mount. It needs no C(ktaskfs) command on the host.
author:
  - The ktaskfs authors (@ktaskfs)
requirements:
  - python >= 3.11
  - Linux, and a mounted ktaskfs
attributes:
  check_mode:
    support: full
    description: The daemon checks the start with C(plan=1), which touches nothing. A start that would be refused fails.
  diff_mode:
    support: full
    description: Shows state, operation and parameters before and after.
options:
  name:
    description:
      - The name of the task.
    type: str
    required: true
  state:
    description:
      - With V(done) the task is started, and the module waits until it is done.
      - With V(started) it is started, and the module does not wait for its end. Use it to start long tasks on many
        hosts, and wait for them in a second step with V(done); otherwise C(forks) limits how many hosts work at a time.
      - With V(cancelled) a task at work is cancelled. A task that has ended stays as it is.
      - With V(absent) a task at work is cancelled, and the task is forgotten. Its files stay.
    type: str
    choices: [done, started, cancelled, absent]
    default: done
  op:
    description:
      - The operation, such as C(fallocate) or C(copy). Required for O(state=done) and O(state=started).
    type: str
  params:
    description:
      - The parameters of the operation, as C(operations/NAME/parameters) of the mount lists them.
      - C(max_threads), C(nice) and C(rate_max) are set anew on a task at work if they differ.
      - Put hexadecimal values in quotes, such as C(pattern), C(expect) and addresses.
        YAML takes C(00) for the number 0.
    type: dict
  rerun:
    description:
      - Do the work again if the task is done.
    type: bool
    default: false
  timeout:
    description:
      - Seconds to wait at most. Afterwards the module fails, and the task goes on.
    type: int
    default: 3600
  mount:
    description:
      - Where ktaskfs is mounted.
    type: path
    default: /run/ktaskfs
seealso:
  - module: ktaskfs.host.info
"""

EXAMPLES = r"""
- name: Allocate the memory of a guest
  ktaskfs.host.task:
    name: vm0
    op: fallocate
    params:
      path: /dev/hugepages/vm0
      length: 64G

- name: Start to load weights on all hosts at once
  ktaskfs.host.task:
    name: weights-7
    op: copy
    params:
      source: /srv/weights.bin
      path: /dev/hugepages/weights
      digest: crc32
    state: started

- name: Wait for the weights
  ktaskfs.host.task:
    name: weights-7
    op: copy
    params:
      source: /srv/weights.bin
      path: /dev/hugepages/weights
      digest: crc32
    timeout: 7200

- name: Scrub the memory of a tenant
  ktaskfs.host.task:
    name: scrub-tenant-17
    op: clear
    params:
      path: /dev/hugepages/vm0

- name: Forget the task
  ktaskfs.host.task:
    name: scrub-tenant-17
    state: absent
"""

RETURN = r"""
actions:
  description:
    - What the module did, or would do in check mode, in this order.
    - C(start), C(replace) (a start in place of an ended task), C(resume), C(set) (parameters), C(cancel), C(forget).
  type: list
  elements: str
  returned: always
  sample: [start]
task:
  description: The figures of the task, as C(tasks/NAME/stat.json) has them.
  type: dict
  returned: if the task exists
  sample: {name: vm0, state: done, operation: fallocate, done: 68719476736, total: 68719476736, units: bytes}
result:
  description: What the operation found, as C(tasks/NAME/result) has it.
  type: str
  returned: if the task exists
  sample: crc32 7f0c1d22
plan:
  description: What the start would do, as C(plan=1) tells it.
  type: dict
  returned: in check mode, if the task would be started
  sample: {operation: fallocate, total: "68719476736", units: bytes, allocates: "68719476736"}
errno:
  description: The name of the error if the daemon refused a command.
  type: str
  returned: if a command was refused
  sample: ENOSPC
"""

import time
from typing import TYPE_CHECKING

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.ktaskfs.host.plugins.module_utils.mounted import ABSENT, Mounted, NotMounted, Refused
from ansible_collections.ktaskfs.host.plugins.module_utils.request import (
    OF_THE_START,
    REPLACE,
    START,
    Failed,
    Request,
    Wanted,
)

if TYPE_CHECKING:
    from typing import Any

ARGUMENTS = {
    "name": {"type": "str", "required": True},
    "state": {"type": "str", "choices": ["done", "started", "cancelled", "absent"], "default": "done"},
    "op": {"type": "str"},
    "params": {"type": "dict"},
    "rerun": {"type": "bool", "default": False},
    "timeout": {"type": "int", "default": 3600},
    "mount": {"type": "path", "default": "/run/ktaskfs"},
}
RESERVED = frozenset(OF_THE_START) - {"queue"}
"""Keys of a spec that the module sets itself."""


class Answer:
    """The result of the module, filled step by step."""

    def __init__(self, module: AnsibleModule, wanted: Wanted, mounted: Mounted) -> None:
        self._module, self._wanted, self._mounted = module, wanted, mounted
        self.actions: list[str] = []
        self.more: dict[str, Any] = {}

    def facts(self) -> dict[str, Any]:
        """Returns the whole result, without the task if it is not readable any more."""
        facts = {"changed": bool(self.actions), "actions": self.actions, **self.more}
        try:
            if task := self._mounted.figures(self._wanted.name):
                result = self._mounted.read(f"tasks/{self._wanted.name}/result")
                facts |= {"task": task, "result": result}
        except Refused as error:
            self._module.warn(f"the task cannot be read: {error}")
        return facts

    def fail(self, message: str, **facts: Any) -> None:
        """End the module with an error."""
        self._module.fail_json(msg=message, **self.facts(), **facts)


def shown(request: Request, state: str, *, own: bool) -> dict[str, Any]:
    """Returns one side of the diff: the wanted work, or the existing task's ``own`` work."""
    if state == ABSENT or not request.wanted.op:
        return {"state": state}
    work = {"op": request.wanted.op, **request.values}
    if own:
        work |= {key: value for key, value in {**request.differences(), **request.own_tunables()}.items() if value}
    return {"state": state, **work}


def carry_out(module: AnsibleModule, request: Request, answer: Answer) -> None:
    """Check, act and wait. Raises Refused and Failed."""
    before = request.mounted.state(request.wanted.name)
    before_shown = shown(request, before, own=True)
    if module.check_mode:
        action = request.action(before)
        if action in (START, REPLACE):
            answer.more["plan"] = request.plan()
        answer.actions = [] if action is None else [action]
        after = request.wanted.state if action else before
    else:
        answer.actions = request.carry_out()
        after = request.settle()
    if answer.actions:
        answer.more["diff"] = {"before": before_shown, "after": shown(request, after, own=False)}


def main() -> None:
    """Run the module."""
    needs_op = [("state", state, ["op"]) for state in ("done", "started")]
    module = AnsibleModule(argument_spec=ARGUMENTS, required_if=needs_op, supports_check_mode=True)
    given: dict[str, Any] = {**module.params, "params": module.params["params"] or {}}
    if reserved := sorted(RESERVED & given["params"].keys()):
        module.fail_json(msg=f"params has {', '.join(reserved)}, which the module gives itself")
    wanted = Wanted(**{key: given[key] for key in ("name", "state", "op", "params", "rerun")})
    mounted = Mounted(given["mount"])
    answer = Answer(module, wanted, mounted)
    try:
        mounted.require()
        carry_out(module, Request(mounted, wanted, time.monotonic() + given["timeout"]), answer)
    except NotMounted as error:
        if not module.check_mode:
            module.fail_json(msg=str(error), errno=error.name, changed=bool(answer.actions), actions=answer.actions)
        module.warn(f"{error}: the play may mount it before this step")
        starts = wanted.state in ("done", "started")
        module.exit_json(changed=starts, actions=[START] if starts else [])
    except Refused as error:
        answer.fail(str(error), errno=error.name)
    except Failed as error:
        answer.fail(str(error))
    module.exit_json(**answer.facts())


if __name__ == "__main__":
    main()
