"""``ktaskfs mount``: becomes the daemon, in the foreground or behind the caller's back."""

from __future__ import annotations

import logging
import os
import sys
from typing import TYPE_CHECKING, Final

from ktaskfs.config import MountConfig, parse_options
from ktaskfs.errors import KtaskfsError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

READY: Final = b"ready"
LOG_NAME: Final = "log"
LOG_MAX: Final = 1 << 20
"""Bytes of an old log that is written on; a larger one is kept as ``log.old``."""


def mount(mountpoint: str, options: list[str], *, foreground: bool, environment: Mapping[str, str]) -> int:
    """Mount; returns the exit status, in the background as soon as the mount answers."""
    try:
        config = parse_options(mountpoint, options, environment)
    except KtaskfsError as error:
        return _fail(error)
    if foreground:
        return _run(config, lambda: None)
    return _run_behind(config)


def _run(config: MountConfig, ready: Callable[[], None]) -> int:
    from ktaskfs.daemon import run_daemon

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    try:
        run_daemon(config, ready)
    except KtaskfsError as error:
        return _fail(error)
    return 0


def _run_behind(config: MountConfig) -> int:
    """Fork the daemon and wait until it says that the mount answers, or why not."""
    readable, writable = os.pipe()
    if os.fork():
        os.close(writable)
        with os.fdopen(readable, "rb") as pipe:
            said = pipe.read()
        if said == READY:
            return 0
        if not said:
            print("ktaskfs: the daemon died before the mount answered", file=sys.stderr)
        return 1
    os.close(readable)
    os.setsid()
    status = _run(config, lambda: _detach(config.statedir, writable))
    if status:
        os.write(writable, b"failed")
    return status


def _detach(statedir: str, writable: int) -> None:
    """Leave the terminal and the caller's directory, log into the state directory, and let the caller go on."""
    path = os.path.join(statedir, LOG_NAME)
    if os.path.exists(path) and os.path.getsize(path) > LOG_MAX:
        os.rename(path, f"{path}.old")
    log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    null = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    os.dup2(null, 0)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)
    os.close(null)
    os.chdir("/")
    os.write(writable, READY)
    os.close(writable)


def _fail(error: KtaskfsError) -> int:
    print(f"ktaskfs: {error.message}", file=sys.stderr)
    return 1
