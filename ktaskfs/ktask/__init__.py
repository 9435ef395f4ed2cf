"""ktask: split a large task into chunks, choose the number of threads, start them and balance the load.

After the kernel series of the same name (Daniel Jordan, RFC v1 to v4, 2017 and 2018) and its successor
``padata_do_multithreaded``, for programs: threads only, no files, no mount. docs/reference/ktask.md has a first client.
Imports no other layer.

Concepts, each in the module of its name:

- A Control says what a client wants, and a Job is one run of it. The calling thread is the first thread of the task;
  the others are helpers. A HelperBudget limits the helpers of one or several tasks.
- The Scheduler is the state of a running task. Its Work hands out chunks, node by node (NodeWork). Its TaskThreads are
  all threads (TaskThread). Sharing computes the chunk size for a number of threads; Admission says when a chunk may
  start, by the pause and the rate limit (TokenBucket).
- Ending completes a run even if signal handlers raise repeatedly. An Outcome has the finished work, a Monitor
  observes the run.

Locks, in the order in which they are taken:

1. ``Scheduler._lock``, one for each job, guards the state of the task: the fields of Scheduler, Work, NodeWork,
   TaskThreads, TaskThread, Sharing, Admission and TokenBucket. Threads take it for each chunk, controls for each call.
   These run under it: ``iter_func``, ``pick``, all methods of Monitor except ``chunk_done``, those of Machine except
   ``nice`` and ``place``, and ``Clock.monotonic_ns``. They may take locks of their own, and must not call the job.
   ``thread_func``, ``undo_func``, ``thread_start`` and ``Clock.wait`` run without any lock.
2. ``HelperBudget._lock``, one for each budget, guards the budget's fields. It is taken with a scheduler's lock held,
   when a helper is hired, pinned or dismissed, or with none. The machine's ``node_cpus`` runs under it.

Three more guard no fields, so they have no place in the order:

- ``TaskThread.gate``, one for each thread. Its thread waits there and holds no lock meanwhile. A thread that
  holds the scheduler's lock opens it, which never waits.
- ``Job._claimed`` is taken once, without waiting, and never released: a job runs only once.
- ``came`` in ``Job._start``, one for each helper. The helper releases it as it begins; the interpreter's exit waits for
  it, for a second at most, and holds no lock meanwhile.

A signal handler must not take any lock, because it may have interrupted the holder. The first two are OwnedLocks, which
are released whatever a handler raises. For the others an exception right after the acquisition is harmless: a gate that
has let its thread through must be locked, and so must a claimed job.
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
