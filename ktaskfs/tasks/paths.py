"""What a relative path in a spec means."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from ktaskfs.operations.base.parameters import PATH, PATH_MAX

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ktaskfs.host.credentials import CallerProcess
    from ktaskfs.operations.base.operation import Operation


def absolute_paths(operation: Operation[Any], texts: Mapping[str, str], caller: CallerProcess) -> dict[str, str]:
    """``texts`` with relative paths put below the caller's working directory, as seen from the caller's root.

    So a task shows what it works on, and works on the same when it is resumed from elsewhere. Where the directory
    has no such name (removed, outside the root, too deep, not UTF-8) a path stays as it is, and the worker's own
    directory counts.
    """
    try:
        root, cwd = (os.readlink(f"/proc/self/fd/{fd}") for fd in (caller.root, caller.cwd))
    except OSError:  # ENAMETOOLONG: a directory may lie deeper than a path is long
        return dict(texts)
    above = root.rstrip("/")
    if not f"{cwd}/".startswith(f"{above}/") or cwd.endswith(" (deleted)") or not _is_text(cwd):
        return dict(texts)
    inside = cwd[len(above) :] or "/"
    paths = {each.name for each in operation.declared if each.kind is PATH}
    joined = {name: os.path.join(inside, text) for name, text in texts.items() if name in paths}
    return {**texts, **{name: path for name, path in joined.items() if len(path.encode()) < PATH_MAX}}


def _is_text(path: str) -> bool:
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True
