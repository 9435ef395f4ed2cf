"""A plugin for Ansible: prints the result of each task as a JSON object in one line, and the counts at the end."""

from __future__ import annotations

import json
from typing import Any

from ansible.plugins.callback import CallbackBase

DOCUMENTATION = """
name: told
type: stdout
short_description: JSON for tests
description: An object a line.
"""


class CallbackModule(CallbackBase):  # type: ignore[misc]  # Ansible has no types
    """The class that Ansible calls."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "stdout"
    CALLBACK_NAME = "told"

    def _print(self, result: Any, *, failed: bool = False) -> None:
        returned = {**result._result, "failed": failed}
        told = {"task": result._task.get_name(), "host": result._host.get_name(), "result": returned}
        print(json.dumps(told, default=str), flush=True)

    v2_runner_on_ok = v2_runner_on_skipped = _print

    def v2_runner_on_failed(self, result: Any, ignore_errors: bool = False) -> None:
        self._print(result, failed=not ignore_errors)

    def v2_runner_on_unreachable(self, result: Any) -> None:
        self._print(result, failed=True)

    def v2_playbook_on_stats(self, stats: Any) -> None:
        print(json.dumps({"counts": {host: stats.summarize(host) for host in stats.processed}}), flush=True)
