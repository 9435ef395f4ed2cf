"""Two processes for a command: the child uses the mount, the parent hears ^C even if the daemon does not answer.

The kernel does not interrupt a process that waits for an answer of the daemon. It does not even kill a process that has
a file of the mount open, before the daemon answers. The parent has no such file open, so it can leave.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import sys
from typing import Final, NoReturn

from ktaskfs.cli.interrupts import INTERRUPTED, OwnInterrupts
from ktaskfs.errors import TargetError

GRACE: Final = 1.0
"""Seconds without an answer to ^C after which the child counts as waiting for the daemon."""


class PassedInterrupts:
    """^C in the child: the parent writes a byte for each, and the child tells the parent that it has read the byte."""

    def __init__(self, fd: int, tell: int) -> None:
        self.fd = fd
        self._tell = tell
        self._count = 0

    @property
    def count(self) -> int:
        """See Interrupts."""
        self.drain()
        return self._count

    def drain(self) -> None:
        """See Interrupts. Ends the process if the parent has ended."""
        try:
            pressed = os.read(self.fd, 4096)
        except BlockingIOError:
            return
        if not pressed:
            os._exit(INTERRUPTED)
        self._count += len(pressed)
        os.write(self._tell, b"\n" * len(pressed))

    def at_the_end(self, words: str) -> None:
        """Tell the parent the words to print if it leaves before this process ends."""
        os.write(self._tell, json.dumps(words).encode() + b"\n")


def fork_for_one(words: str) -> PassedInterrupts | None:
    """Fork for a command that ^C ends at once; return in the child.

    The parent ends as the child does. If ^C does not end the child, it says ``words``, and ends without the
    child. Returns None, without a second process, if this process ignores ^C or handles it.
    """
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        return None
    interrupts = fork_watched(1, words)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    return interrupts


def fork_watched(last: int, words: str) -> PassedInterrupts:
    """Fork; return in the child, which ignores SIGINT. The parent ends as the child does, or leaves it and the tasks.

    It leaves at the ``last`` ^C, or at a later one, if the child does not read it. It then says ``words``, or what the
    child has told it. Raises TargetError at a limit on processes or open files.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    try:
        presses, press = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        told, tell = os.pipe2(os.O_CLOEXEC)
        with contextlib.ExitStack() as undo:
            # Entered before the fork: a ^C at this moment is heard by the one or the other.
            interrupts = undo.enter_context(OwnInterrupts())
            child = os.fork()
            undo.pop_all()
    except OSError as error:
        raise TargetError.from_os(error, "start a second process") from error
    if child:
        os.close(presses)
        os.close(tell)
        _watch(child, interrupts, press, told, last, words)
    os.close(press)
    os.close(told)
    interrupts.__exit__()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    return PassedInterrupts(presses, tell)


def _watch(child: int, interrupts: OwnInterrupts, press: int, told: int, last: int, words: str) -> NoReturn:
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    for each in (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        if signal.getsignal(each) is signal.SIG_DFL:
            signal.signal(each, lambda number, _frame: _end_both(child, number))
    pidfd = os.pidfd_open(child)
    poll = select.poll()
    for fd in (pidfd, interrupts.fd, told):
        poll.register(fd, select.POLLIN)
    passed, seen, hinted, rest = 0, 0, False, b""
    while True:
        ready = {fd for fd, _ in poll.poll(GRACE * 1000 if seen < passed else None)}
        if pidfd in ready:
            _end_as(child)
        if told in ready:
            if not (piece := os.read(told, 1 << 16)):
                poll.unregister(told)
            *lines, rest = (rest + piece).split(b"\n")
            seen += lines.count(b"")
            words = next((json.loads(line) for line in reversed(lines) if line), words)
        if interrupts.fd in ready:
            interrupts.drain()
            pressed = interrupts.count
            os.kill(child, signal.SIGINT)  # the terminal may have sent it to this process alone
            with contextlib.suppress(BrokenPipeError):  # it is about to end
                os.write(press, bytes(pressed - passed))
            passed = pressed
        if ready or seen == passed:
            continue
        if passed >= last:
            _leave(child, words)
        if not hinted:
            _say("the daemon does not answer yet; ^C again ends this command alone")
            hinted = True


def _end_as(child: int) -> NoReturn:
    """End with the child's status, or by the signal that ended it."""
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    if code < 0:
        if -code not in (signal.SIGKILL, signal.SIGSTOP):
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code)


def _end_both(child: int, number: int) -> None:
    os.kill(child, signal.SIGKILL)
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)


def _leave(child: int, words: str) -> NoReturn:
    os.kill(child, signal.SIGKILL)  # withdraws its request, unless the daemon has read it already
    _say(f"ktaskfs: the daemon does not answer; {words}")
    os._exit(INTERRUPTED)


def _say(words: str) -> None:
    """Say it after ^C, which a terminal shows."""
    with contextlib.suppress(OSError):  # standard error is closed
        os.write(2, b"\n" * os.isatty(2) + os.fsencode(f"{words}\n"))
