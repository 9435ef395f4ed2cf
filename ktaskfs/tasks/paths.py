"""The meaning of relative paths in a spec."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from ktaskfs.operations.base.parameters import FILE, PATH, PATH_MAX

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ktaskfs.host.credentials import CallerProcess
    from ktaskfs.operations.base.operation import SpecWord


_PATHS: Final = (PATH, FILE)


def are_absolute(operation: SpecWord, texts: Mapping[str, str]) -> bool:
    """Whether all paths in ``texts`` begin at the root."""
    return all(texts.get(each.name, "/").startswith("/") for each in operation.declared if each.kind in _PATHS)


def absolute_paths(operation: SpecWord, texts: Mapping[str, str], caller: CallerProcess) -> dict[str, str]:
    """``texts`` with relative paths made absolute below the caller's working directory, as seen from the caller's root.

    So a task shows its target, and a resume from elsewhere uses the same one. If the directory has no such name
    (removed, outside the root, too deep), a path stays relative to the worker's working directory.
    """
    try:
        root, cwd = (os.readlink(f"/proc/self/fd/{fd}") for fd in (caller.root, caller.cwd))
    except OSError:  # ENAMETOOLONG: a directory may lie deeper than a path is long
        return dict(texts)
    above = root.rstrip("/")
    if not f"{cwd}/".startswith(f"{above}/") or cwd.endswith(" (deleted)"):
        return dict(texts)
    inside = cwd[len(above) :] or "/"
    paths = {each.name for each in operation.declared if each.kind in _PATHS}
    joined = {name: os.path.join(inside, text) for name, text in texts.items() if name in paths}
    return {**texts, **{name: path for name, path in joined.items() if len(os.fsencode(path)) < PATH_MAX}}
