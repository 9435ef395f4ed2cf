#!/usr/bin/python
# Copyright (c) 2026, The ktaskfs authors
# MIT License (see LICENSE, or https://opensource.org/license/mit)
# SPDX-License-Identifier: MIT
"""The module info: the tasks of a mounted ktaskfs, and the host's huge pages."""

from __future__ import annotations

DOCUMENTATION = r"""
module: info
short_description: Tasks of ktaskfs, pools of huge pages, and who holds them
version_added: 0.1.0
description:
  - Reads tasks, pools and NUMA nodes from the files of a mounted ktaskfs. It changes nothing.
  - It does not fail if no ktaskfs is mounted. RV(mounted) says whether there is one.
author:
  - The ktaskfs authors (@ktaskfs)
requirements:
  - python >= 3.11
  - Linux
attributes:
  check_mode:
    support: full
    description: The module changes nothing.
  diff_mode:
    support: none
    description: The module changes nothing.
options:
  name:
    description:
      - Which tasks, by name; C(*), C(?) and C([...]) stand for several.
    type: list
    elements: str
    default: ["*"]
  holders:
    description:
      - Whether to find out who holds the huge pages. This looks at all processes, and may take seconds on a large host.
    type: bool
    default: false
  mount:
    description:
      - Where ktaskfs is mounted.
    type: path
    default: /run/ktaskfs
seealso:
  - module: ktaskfs.host.task
"""

EXAMPLES = r"""
- name: Look at the tasks of the guests
  ktaskfs.host.info:
    name: vm*
  register: ktaskfs

- name: Require that all of them are done
  ansible.builtin.assert:
    that: ktaskfs.tasks | rejectattr('state', 'eq', 'done') | length == 0

- name: Find out who holds the huge pages
  ktaskfs.host.info:
    holders: true
  register: ktaskfs
"""

RETURN = r"""
mounted:
  description: Whether a ktaskfs is mounted.
  type: bool
  returned: always
version:
  description: Its version.
  type: str
  returned: if it is mounted
  sample: 0.2.0
tasks:
  description: The tasks with these names, as C(info/tasks.json) has them, those at work first.
  type: list
  elements: dict
  returned: if it is mounted
  sample: [{name: vm0, state: running, operation: fallocate, done: 31675383808, total: 68719476736, units: bytes}]
pools:
  description:
    - The pools of huge pages, of the host (V(node) is null) and of each NUMA node.
    - V(size) is in bytes, the rest in pages.
  type: list
  elements: dict
  returned: if it is mounted
  sample: [{size: 2097152, node: null, total: 32768, free: 32768, reserved: 0, surplus: 0}]
nodes:
  description: The NUMA nodes, with their CPUs, and total and free memory in bytes.
  type: list
  elements: dict
  returned: if it is mounted
  sample: [{node: 0, cpus: 0-31, total: 135089860608, free: 62277025792}]
holders:
  description: Who holds the huge pages, as C(info/holders.json) has it.
  type: dict
  returned: with O(holders=true), if it is mounted
"""

import errno
import json
import time
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.ktaskfs.host.plugins.module_utils.mounted import Mounted, Refused, table
from ansible_collections.ktaskfs.host.plugins.module_utils.values import number

if TYPE_CHECKING:
    from typing import Any

ARGUMENTS = {
    "name": {"type": "list", "elements": "str", "default": ["*"]},
    "holders": {"type": "bool", "default": False},
    "mount": {"type": "path", "default": "/run/ktaskfs"},
}
PATIENCE = 60.0
"""Seconds that the scan for holders may take."""


def numbers(row: dict[str, str]) -> dict[str, Any]:
    """Returns a row with numbers instead of texts, and None instead of "-". Lists of CPUs stay texts."""
    return {key: None if text == "-" else text if key == "cpus" else number(text) for key, text in row.items()}


def read_holders(mounted: Mounted) -> dict[str, Any]:
    """Returns the holders of huge pages. A read that fails with ETIMEDOUT does not stop the scan. Raises Refused."""
    end = time.monotonic() + PATIENCE
    while True:
        try:
            holders: dict[str, Any] = json.loads(mounted.read("info/holders.json"))
        except Refused as error:
            if error.number not in (errno.ETIMEDOUT, errno.EAGAIN) or time.monotonic() > end:
                raise
        else:
            return holders


def gather(mounted: Mounted, names: list[str], *, holders: bool) -> dict[str, Any]:
    """Returns the result of the module. Raises Refused."""
    tasks = json.loads(mounted.read("info/tasks.json"))
    found = {
        "version": mounted.read("version").strip(),
        "tasks": [each for each in tasks if any(fnmatchcase(each["name"], name) for name in names)],
        "pools": [numbers(row) for row in table(mounted.read("info/hugepages"))],
        "nodes": [numbers(row) for row in table(mounted.read("info/nodes"))],
    }
    return {**found, "holders": read_holders(mounted)} if holders else found


def main() -> None:
    """Run the module."""
    module = AnsibleModule(argument_spec=ARGUMENTS, supports_check_mode=True)
    given: dict[str, Any] = module.params
    mounted = Mounted(given["mount"])
    try:
        is_there = mounted.is_there()
        found = gather(mounted, given["name"], holders=given["holders"]) if is_there else {}
    except Refused as error:
        module.fail_json(msg=str(error), errno=error.name)
    module.exit_json(mounted=is_there, **found)


if __name__ == "__main__":
    main()
