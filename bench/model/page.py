"""The page and the plot of the scaling model: docs/explanation/scaling.md and docs/plots/scaling.svg."""

from __future__ import annotations

import re
import statistics
import textwrap
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from bench.model.fit import GIB, HUGE_PAGE, LEAST_CHUNK, Shape, memory_threads, soft_minimum, speedup
from bench.model.published import (
    CLOUD,
    CLOUD_ALL,
    CLOUD_BEFORE,
    CLOUD_CAPPED,
    CLOUD_PEAK,
    SOURCES,
    THREADS,
    XEON,
    fit_through,
)
from bench.model.tables import (
    CHUNKS,
    CORES,
    LINES,
    SIZES,
    TIB,
    Report,
    again,
    checks,
    published,
    short,
    stops,
    summary,
    variants,
)
from bench.simulate import table as rows_table
from ktaskfs.units import format_size

if TYPE_CHECKING:
    from pathlib import Path

FEW: Final = 32
"""The cap on the workers of cloud-hypervisor with which it measured CLOUD_CAPPED."""


def document(report: Report) -> str:
    """Returns the whole page."""
    parts = (_expectations, _limits, _series, _cloud, _changes, _method)
    return "\n".join(map(wrapped, [*(part(report) for part in parts), _doubts()]))


def wrapped(text: str) -> str:
    """Returns the text with paragraphs and list items wrapped to the width of a line, and other parts unchanged."""
    blocks = []
    for block in text.strip().split("\n\n"):
        if block[0] in "|#!":
            blocks.append(block)
            continue
        pieces = re.split(r"\n(?=- |\d\. )", block)
        blocks.append("\n".join(_filled(" ".join(piece.split())) for piece in pieces))
    return "\n\n".join(blocks) + "\n"


def _filled(piece: str) -> str:
    marker = re.match(r"- |\d\. ", piece)
    indent = " " * len(marker[0]) if marker else ""
    return textwrap.fill(piece, 120, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


def _expectations(report: Report) -> str:
    largest = report.server("fallocate", CORES[-1])
    fallocate, clear = (report.of(name, CORES[-1], SIZES[-1]) for name in ("fallocate", "clear"))
    enough = {name: memory_threads(replace(server, nodes=1)) for name, server in report.servers.items()}
    costs = report.costs["fallocate"]
    budget = HUGE_PAGE / largest.memory
    unmap = short(SIZES[-1] / HUGE_PAGE * costs.page_unmap)
    xeon = [fit for fit in report.fits if fit.published.machine == XEON]
    spread = [f"{fit.most:.1f}x" for fit in xeon if fit.published.operation == "fallocate"]
    working = f"{fallocate.work_seconds / fallocate.seconds:.0%}"
    thread, together = fit_through((FEW, CLOUD_CAPPED), CLOUD_ALL, report.knee)
    tables = "\n\n".join(f"**`{name}`** ({LINES[name]})\n\n{summary(report, name)}" for name in report.servers)
    return f"""# How far it scales: a prediction

**Nobody has run ktaskfs on more than a few cores yet.** `python -m bench.model` predicts all times of servers below,
in one run on one machine ({report.machine}).

- Measured in that run: how long a chunk holds the GIL; what a page, a thread and a start cost; what one thread zeroes.
- Taken from others: how sharply memory saturates, fitted to the published figures of the kernel series.
- Assumed: the server's cores and nodes; {largest.node_bandwidth / GIB:.0f} GiB/s of zeroing in each node; that a thread
  there is as fast as one here; that the kernel's locks cost no more between sockets. The command line can change these.

## What to expect

A server with {report.cores_per_node} cores and {largest.node_bandwidth / GIB:.0f} GiB/s of zeroing in each NUMA node,
pages of 2 MiB, and threads that work on the node of their pages: `nodes=` in a spec of `fallocate`, and for `clear` by
itself.

{tables}

*threads*: up to 80 % of the CPUs, as far as they help. *speedup*: against one
thread, at 16 TiB. *GIL*: the part of the time that the worker's Python threads hold it. *limit*: the resource that one
more thread would wait for; *cores* means that it would help.

- **Memory is the limit, not Python.** {enough["fallocate"]:.0f} threads of `fallocate`, or {enough["clear"]:.0f} of
  `clear`, use up the bandwidth of one node, if a thread is as fast there as here. On other machines it is several times
  slower (below), and as many more threads are needed. A long task finds the number while it runs.
- **It predicts neither published figure of a new server.** cloud-hypervisor, with two sockets, filled
  {CLOUD_ALL[1]:.0f} GiB/s with {CLOUD_ALL[0] // 2} threads for each, and {CLOUD_CAPPED:.0f} with {FEW} threads (below).
  The model fits both with {together / 2:.0f} GiB/s a socket and {thread:.1f} a thread. This page assumes
  {largest.node_bandwidth / GIB:.0f} and {report.servers["fallocate"].core_bandwidth / GIB:.1f}, and with these has
  {_with_few(report):.0f} for {FEW} threads.
- **The GIL is held {fallocate.gil_share:.0%} (`fallocate`) and {clear.gil_share:.0%} (`clear`) of the time** on
  {CORES[-1]} cores.
- **The kernel's locks are the unknown.** In 2017 the series' fallocate never came beyond {min(spread)} to
  {max(spread)} on its Xeon. ktaskfs uses another path in the kernel, without the inode's lock. On {CORES[-1]} cores
  all threads together have {budget * 1e6:.1f} µs for a page; freeing one, which passes the same locks, takes
  {costs.page_lock * 1e6:.1f} µs here alone. If sockets that fetch a lock from each other make it
  {budget / costs.page_lock:.0f} times as long, locks are the limit. Expect something between the table above and the
  last row of *What would have to change*.
- **The end is serial.** One thread takes down the mapping: {unmap} for 16 TiB. So {working} of the time on {CORES[-1]}
  cores is work. The start is {costs.task * 1e3:.0f} ms, and {costs.thread_start * 1e6:.0f} µs for each thread.

![predicted speedup](../plots/scaling.svg)
"""


def _limits(report: Report) -> str:
    return f"""## Where each resource is used up

Number of threads that would use up each resource alone, on {CORES[-1]} cores; for the GIL by the size of the chunks.
*locks*: the time that all threads together have for a page; a lock that is held longer for each page becomes the limit.

{stops(report)}
"""


def _series(report: Report) -> str:
    worst = max(report.fits, key=lambda fit: fit.error)
    sources = "\n".join(f"- {name}: <{address}>" for name, address in SOURCES.items())
    return f"""## Compared with the kernel series

Daniel Jordan's *ktask*, RFC v2 to v4; figures that appear in several are the same. The fit of each row has the
bandwidth of a thread and of all together, and one exponent for all rows ({report.knee:g}); *residual* is the root
of the mean square.

{published(report)}

The worst residual, {worst.published.operation} of {worst.published.gib} GiB, is its first column: two threads were
{worst.published.speedups[1]:.2f} times as fast as one. One thread alone works on memory of other nodes, which the
authors name among their reasons and the model has no term for. Of the Xeon the authors say that clearing is bound by
memory (2550 MiB/s a thread with up to 8 threads, 1420 with 16), and fallocate beyond 8 threads by cache misses on the
table of fault mutexes (31 % of the L1 misses with 16 threads). Not found: the text of v1, whose range for two threads
that clear, 1.88x to 2.54x, is that of the rows above, and the SPARC's fallocate of 200 GiB beyond two threads (1.92x).

{sources}
"""


def _with_few(report: Report) -> float:
    """GiB/s of FEW threads of ``fallocate`` on two reference nodes."""
    ours = report.servers["fallocate"]
    return soft_minimum([FEW * ours.core_bandwidth, 2 * ours.node_bandwidth], report.knee) / GIB


def _cloud(report: Report) -> str:
    rows = []
    for threads in (FEW, 2 * FEW):
        thread, together = fit_through((threads, CLOUD_CAPPED), CLOUD_ALL, report.knee)
        before = soft_minimum([CLOUD_BEFORE[0] * thread, together / 2], report.knee)
        share = f"{together * GIB / 2 / CLOUD_PEAK:.0%}"
        rows.append((threads, f"{thread:.1f}", f"{together / 2:.0f}", share, f"{before:.0f}"))
    header = (
        "workers under the cap",
        "GiB/s a thread",
        "GiB/s a socket",
        "of its peak",
        "16 workers, one socket, GiB/s",
    )
    ours = report.servers["fallocate"]
    slowest = min(fit.thread for fit in report.fits if fit.published.machine == XEON) / GIB
    return f"""## Compared with cloud-hypervisor

[Pull request 8785]({CLOUD}) (August 2026) measured what `fallocate` does, MADV_POPULATE_WRITE, on two sockets of
Xeon 6776P, pages of 1 GiB, 2954 GiB in all: {CLOUD_BEFORE[1]:.0f} GiB/s with {CLOUD_BEFORE[0]} workers that are not
pinned and take one socket after the other; {CLOUD_CAPPED:.0f} with at most {FEW} that are pinned; about
{CLOUD_ALL[1]:.0f} with 132 for each socket. The last two fix both of the model's figures; whether the {FEW} are for
both sockets or for each is not said:

{rows_table(header, rows)}

- **The model explains how much the memory gives.** All workers together reach about half of the peak, as assumed for
  the reference server; {FEW} do not use it up.
- **It does not know how fast a thread is there.** The table has {rows[0][1]} or {rows[1][1]} GiB/s, this run's machine
  {ours.core_bandwidth / GIB:.1f}, the Xeon of 2015 above {slowest:.1f} or more. With this machine's threads and two
  reference nodes the model has {_with_few(report):.0f} GiB/s for {FEW} threads, not {CLOUD_CAPPED:.0f}. So measure
  `--core-fallocate` on the server itself.
- The last column tests the fit with the figure that it was not made from, {CLOUD_BEFORE[1]:.0f} GiB/s. Workers that
  are not pinned are slower than that column says, so the first row is the likely one: far memory then costs about a
  third.
"""


def _changes(report: Report) -> str:
    return f"""## What would have to change to go further

{variants(report)}

- **First, in ktaskfs: the end.** A worker for each node takes down its own part. Releasing finished chunks
  (MADV_DONTNEED) does not help: with two threads a page takes many times as long as in one munmap.
- **One worker process for each node** divides the end, the GIL and the lock of the address space. The hands of `clear`
  divide the end and that lock already: each maps and unmaps its own chunks. The tables are of a worker without hands.
- **Free-threaded Python** gains little: {report.locked * 1e6:.1f} µs of a chunk are under the scheduler's own lock,
  which would stay.
- **Larger chunks** relieve the GIL, which is not the limit, and make cancel and pause slower.
- **The kernel**: since January 2026 it clears a huge page in one go instead of 512 steps (`clear_pages`, Ankur Arora),
  which brings a thread of `fallocate` near one of `clear`. That helps with few threads; with many, memory is still the
  limit.
"""


def _method(report: Report) -> str:
    lock = report.costs["fallocate"].page_lock
    handoff = report.costs["fallocate"].gil_handoff
    bandwidths = ", ".join(f"{each.core_bandwidth / GIB:.1f} GiB/s ({name})" for name, each in report.servers.items())
    return f"""## Method

1. **A chunk** holds the GIL for a fixed time (measured with the operation's own chunk function on next to no memory;
   the overhead of its system calls is counted as GIL, so it is an upper bound), and zeroes without it.
2. **Zeroing**: the soft minimum of threads × a thread's bandwidth, nodes × a node's, and pages under a kernel lock.
3. **GIL and zeroing** form a closed queue, solved by mean value analysis. Start, threads, half a least chunk at the
   end, and the unmapping are added.

Assumptions, to replace by your server's figures:

- `--core-fallocate`, `--core-clear`: {bandwidths}, what one thread does here (below).
  For comparison: the commit that brought `clear_pages` says 13.7 GB/s in steps of 4 KiB and 38 GB/s in one go for an
  EPYC of the third generation.
- `--node-bandwidth`, `--cores-per-node`: about half the peak of eight channels of DDR5-4800, and
  {report.cores_per_node} cores.
- `--page-lock-ns`: {lock * 1e9:.0f}, what freeing a page takes here, which passes the same locks and zeroes nothing.
  That is without contention; between sockets, where the lock's cache line must move, it is several times as long.

Measured here, most of it as CPU time, because other work may run beside: {report.about}.

{report.measured}

A thread that finds the GIL held gets it {handoff * 1e6:.1f} µs later than it otherwise would (32 threads that always
want it).

### How well it predicts

The main job with two threads, from its C programs with one and two (they fix the memory, so this tests the rest):

{again(report)}

The GIL with real threads: chunks that hold it as long as the real ones, then sleep as long as the model says that
zeroing takes on the largest server. *efficiency*: the time without any waiting over that of the run, the best of
five.

{checks(report)}

{_agreement(report)} On these two CPUs, with
other work beside, a thread that waits for the GIL may as well wait for a CPU. [The simulation](balancing-simulation.md)
of load balancing has what was measured with up to 512 threads that sleep.
"""


def _agreement(report: Report) -> str:
    """Describes the distance between model and real threads, with and without the GIL as bottleneck."""
    parts = []
    for busy, where in ((False, "up to half of the time"), (True, "longer")):
        apart = [abs(each.measured / each.modelled - 1) for each in report.checks if (each.share > 0.5) is busy]
        if apart:
            parts.append(f"held {where}, by {statistics.median(apart):.0%} (median) and {max(apart):.0%} (most)")
    return f"The two differ, where the GIL is {'; where it is '.join(parts)}."


def _doubts() -> str:
    return """## What the model does not cover

- Two virtual CPUs on one node say nothing about many: beyond two threads, all figures of memory come from machines of
  2015 and from data sheets.
- There is no term for far memory. Pages that are spread over N nodes one by one are on the wrong one for (N - 1)/N of
  a thread's work.
- There is no term for the locks of the address space: all threads of a worker fault in one mapping.
- All pages are in the pool, evenly on all nodes, and were touched before: the first touch of a virtual machine's
  memory is 20 to 50 times slower.
- Other work takes bandwidth as well as CPUs, and helpers run at nice 19.
"""


def plot(report: Report, path: Path) -> None:
    """Draw the speedup by threads: the model's lines and the published points. Needs matplotlib."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams.update({"svg.hashsalt": "scaling", "svg.fonttype": "none", "font.size": 9})
    from matplotlib import pyplot

    counts = [1, 2, 4, 8, 16, 32, 64, 128, 205]
    figure, axes = pyplot.subplots(1, len(report.servers), figsize=(8, 3.4), sharey=True)
    for axis, (operation, server) in zip(axes, report.servers.items(), strict=True):
        for chunk in CHUNKS:
            shapes = [Shape(size=TIB, threads=n, chunk=chunk, least_chunk=min(chunk, LEAST_CHUNK)) for n in counts]
            faster = [speedup(server, report.costs[operation], shape, report.knee) for shape in shapes]
            axis.plot(counts, faster, label=f"chunks of {format_size(chunk)}")
        for fit, mark in zip((f for f in report.fits if f.published.operation == operation), "os^vDPX", strict=False):
            of = fit.published
            label = f"{of.machine.split()[0]}, {of.gib} GiB"
            axis.plot(THREADS, of.speedups, mark, markersize=4, fillstyle="none", label=label)
        axis.plot([1, 64], [1, 64], ":", color="gray", linewidth=0.8)
        axis.set_xscale("log", base=2)
        axis.set_yscale("log", base=2)
        axis.xaxis.set_major_formatter("{x:.0f}")
        axis.yaxis.set_major_formatter("{x:.0f}")
        axis.set_title(f"{operation}, {server.nodes} nodes × {server.node_bandwidth / GIB:.0f} GiB/s")
        axis.set_xlabel("threads")
        axis.grid(alpha=0.3)
        axis.legend(fontsize=6.5)
    axes[0].set_ylabel("times as fast as one thread")
    figure.tight_layout()
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)
