"""The page that a daemon and one worker share: requests one way, progress the other, no message and no lock.

Imports no other layer.

The worker maps the file (``worker_page.py``). The daemon uses only pread and pwrite on it (``daemon_side.py``), and
checks everything that it reads, because the owner of the worker's uid may write to the page, too. Every field is an
aligned 64-bit word with one writer; ``layout.py`` has the table of them: what the daemon wrote at creation, its
requests, the worker's report with the message of an error, the ranges of the work, and a slot for each thread. Behind
them is the text of ``result``, which the worker appends at its end with pwrite. ``holder.py`` tells the worker.

The finished work survives a SIGKILL of the worker at any instruction. A slot holds two banks for the chunk in flight
and a sequence number whose lowest bit says which one counts; that number is one aligned 8-byte store. The chunk
is put into a slot before its range's position moves past it, so a unit is at any time beyond the position, or in
a slot, or both, until it is done. A reader that copies a slot while its bank flips sees the sequence number
change, and copies again.
"""

from ktaskfs.progress.daemon_side import (
    create_page,
    lay_out_page,
    read_requests,
    read_result,
    read_snapshot,
    write_requests,
)
from ktaskfs.progress.holder import worker_of
from ktaskfs.progress.layout import Shape
from ktaskfs.progress.snapshot import FoundWhy, NodeProgress, Phase, Requests, Snapshot, ThreadProgress, ThreadState
from ktaskfs.progress.worker_page import WorkerPage

__all__ = [
    "FoundWhy",
    "NodeProgress",
    "Phase",
    "Requests",
    "Shape",
    "Snapshot",
    "ThreadProgress",
    "ThreadState",
    "WorkerPage",
    "create_page",
    "lay_out_page",
    "read_requests",
    "read_result",
    "read_snapshot",
    "worker_of",
    "write_requests",
]
