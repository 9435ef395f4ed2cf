"""What the daemon knows of a worker."""

from __future__ import annotations

import os
import subprocess

from ktaskfs.progress import Shape
from ktaskfs.tasks.worker_handle import WorkerHandle
from tests.support.processes import halt


def test_the_number_of_a_worker_that_has_ended_is_not_looked_at() -> None:
    """It may be another's by now, which hangs in execve(2), and so would a reader of its stat."""
    with subprocess.Popen(["true"]) as worker, subprocess.Popen(["sleep", "infinity"]) as other:
        of_worker, of_other = os.pidfd_open(worker.pid), os.pidfd_open(other.pid)
        worker.wait()
        halt(other.pid)
        try:
            living = WorkerHandle(other.pid, 0, of_other, -1, Shape(1, 1))
            assert (living.is_stopped(), living.cpu_of(other.pid) is None) == (True, False)
            ended = living._replace(pidfd=of_worker)
            assert (ended.is_stopped(), ended.cpu_of(other.pid)) == (False, None)
        finally:
            other.kill()
            os.close(of_worker)
            os.close(of_other)
