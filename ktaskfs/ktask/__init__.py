"""ktask: split a large task into chunks, choose the number of threads, start them and balance the load.

After the kernel series of the same name (Daniel Jordan, RFC v1 to v4, 2017 and 2018) and its successor
``padata_do_multithreaded``, for programs: threads only, no files, no mount. docs/ktask.md has a first client.
"""

from ktaskfs.ktask.arithmetic import DEFAULT_MAX_THREADS, chunk_size, helper_limit, nthreads
from ktaskfs.ktask.budget import HelperBudget
from ktaskfs.ktask.clock import Clock
from ktaskfs.ktask.control import Control, iter_range
from ktaskfs.ktask.job import Job, run, run_numa
from ktaskfs.ktask.machine import LinuxMachine, Machine, Placement
from ktaskfs.ktask.monitor import Monitor
from ktaskfs.ktask.outcome import NodeShare, Outcome, TaskError, ThreadShare
from ktaskfs.span import NO_NODE, Node

__all__ = [
    "DEFAULT_MAX_THREADS",
    "NO_NODE",
    "Clock",
    "Control",
    "HelperBudget",
    "Job",
    "LinuxMachine",
    "Machine",
    "Monitor",
    "Node",
    "NodeShare",
    "Outcome",
    "Placement",
    "TaskError",
    "ThreadShare",
    "chunk_size",
    "helper_limit",
    "iter_range",
    "nthreads",
    "run",
    "run_numa",
]
