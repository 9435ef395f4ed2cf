"""Sealing: what a worker gives up before it becomes its caller, so that it has no more access than its caller.

The caller owns the worker's uid, and may own the root directory of its later lookups. So the worker looks up nothing
that could be the caller's code, and keeps only the descriptors of its work. Three steps: the spawner disables imports
once; a waiting worker closes the spawner's descriptors; a worker with a task becomes the caller.
"""

from __future__ import annotations

import codecs
import contextlib
import ctypes
import linecache
import os
import sys
import threading
import warnings
from typing import TYPE_CHECKING, Any, Final

from ktaskfs.descriptors import close_all_but
from ktaskfs.host.becoming import become
from ktaskfs.host.credentials import Identity
from ktaskfs.host.group_limits import enter_groups
from ktaskfs.host.kernel import Kernel
from ktaskfs.host.labels import APPARMOR
from ktaskfs.units import parse_cpulist

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence, Set

    from ktaskfs.host.cgroups import GroupMounts

_CODECS: Final = ("utf-8", "ascii", "latin-1", sys.getfilesystemencoding())
_CAUSES_MAX: Final = 4
"""Maximum exceptions reported of a chain."""


def close_imports() -> None:
    """Permanently disable the lookup of modules, codecs, libraries and source lines, for this process and its forks."""
    for name in _CODECS:
        codecs.lookup(name)
    with contextlib.suppress(OSError):  # glibc loads it when a thread ends by pthread_exit(3)
        ctypes.CDLL("libgcc_s.so.1")
    for state in (sys.meta_path, sys.path_hooks, sys.path, sys.path_importer_cache):
        state.clear()
    # The interpreter's own tracebacks read source lines, and decode them with their declared codec.
    sys.tracebacklimit = 0
    sys.excepthook = lambda _kind, error, _trace: report(error)
    sys.unraisablehook = lambda unraisable: report(unraisable.exc_value)
    threading.excepthook = lambda failure: report(failure.exc_value)
    linecache.updatecache = _no_lines
    warnings.simplefilter("ignore")


def _no_lines(filename: str, module_globals: dict[str, Any] | None = None) -> list[str]:
    return []


def keep_only(descriptors: Collection[int], output: int) -> None:
    """Close all other descriptors except standard input; ``output`` becomes standard error, and standard output
    /dev/null."""
    os.dup2(0, 1)  # /dev/null
    os.dup2(output, 2)
    close_all_but(descriptors)


def become_caller(
    fields: Mapping[str, Any], descriptors: Sequence[int], cgroups: GroupMounts, kernel: Kernel
) -> Kernel:
    """Become the caller of ``fields``, and close its ``descriptors``, and ``cgroups``.

    Returns the kernel's files for further use. Raises NotPermitted or TargetError: the process must then end.
    """
    identity = Identity.from_fields(fields)
    if identity.label is not None and identity.label.module == APPARMOR:  # it denies everything below a detached copy
        kernel.close()
        kernel = Kernel.open()._replace(abandoned=kernel.abandoned)
    daemons = os.sched_getaffinity(0)
    enter_groups(cgroups, identity.cgroups)
    cgroups.close()
    _take_cpus(frozenset(parse_cpulist(identity.cpus)), daemons)
    become(identity, *descriptors)
    for fd in descriptors:
        os.close(fd)
    return kernel


def _take_cpus(callers: Set[int], daemons: Set[int]) -> None:
    """Run on the common CPUs of caller and daemon, or else on the daemon's; the entered cpuset limits them further."""
    cpus = callers & daemons or daemons
    if cpus != os.sched_getaffinity(0):
        with contextlib.suppress(OSError):  # the cpuset has none of them, so the process runs on all of the cpuset's
            os.sched_setaffinity(0, cpus)


def report(error: BaseException | None) -> None:
    """Write an unexpected exception to standard error, with code locations but without source lines."""
    with contextlib.suppress(Exception):  # memory is short, or nobody reads: there is no other place to report
        text = "".join(f"{line}\n" for line in _lines(error))
        os.write(2, text.encode("utf-8", "replace"))


def _lines(error: BaseException | None) -> list[str]:
    lines: list[str] = []
    for _ in range(_CAUSES_MAX):
        if error is None:
            break
        lines.append("Traceback (most recent call last):" if not lines else "caused by:")
        trace = error.__traceback__
        while trace is not None:
            code = trace.tb_frame.f_code
            lines.append(f'  File "{code.co_filename}", line {trace.tb_lineno}, in {code.co_name}')
            trace = trace.tb_next
        lines.append(f"{type(error).__name__}: {error}")
        error = error.__cause__ or error.__context__
    return lines
