"""Published times, and the memory part of the model fitted to them.

Daniel Jordan, *ktask: multithread CPU-intensive kernel work*: RFC v2 (August 2017), v3 (December 2017) and v4 (November
2018) print the same figures for the Xeon; v2 and v3 have the SPARC beside it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from bench.model.fit import GIB, soft_minimum

if TYPE_CHECKING:
    from collections.abc import Sequence

THREADS: Final = (1, 2, 4, 8, 16)
XEON: Final = "Xeon E7-8895 v3, 288 CPUs"
SPARC: Final = "SPARC T7-4, 1024 CPUs"
SOURCES: Final = {
    "clear, v2": "https://lkml.iu.edu/hypermail/linux/kernel/1708.3/00803.html",
    "clear, v3": "https://lkml.iu.edu/hypermail/linux/kernel/1712.0/03620.html",
    "clear, v4": "http://www.uwsg.indiana.edu/hypermail/linux/kernel/1811.0/03362.html",
    "fallocate, v2": "https://www.mail-archive.com/linux-kernel@vger.kernel.org/msg1477538.html",
    "fallocate, v4": "https://www.mail-archive.com/linux-kernel@vger.kernel.org/msg1798219.html",
}
CLOUD: Final = "https://github.com/cloud-hypervisor/cloud-hypervisor/pull/8785"
"""*vmm: Pin and parallelize memory prefault*, August 2026: two zones of 1477 GiB on 1 GiB pages, one on each socket."""
CLOUD_CAPPED: Final = 178.0
"""GiB/s with at most 32 workers, pinned, both zones at the same time."""
CLOUD_ALL: Final = (2 * 132, 400.0)
"""The number of workers, and their GiB/s together."""
CLOUD_BEFORE: Final = (16, 57.0)
"""GiB/s before the change: not pinned, one zone after the other."""
CLOUD_PEAK: Final = 8 * 6.4e9 * 8
"""The limit of a socket's memory in bytes per second: eight channels of DDR5-6400 (Xeon 6776P)."""
KNEES: Final = (1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0)
"""Candidates for the sharpness of the saturation of memory."""


@dataclass(frozen=True)
class Published:
    """The shortest times in seconds of one test, for each number of THREADS."""

    operation: str
    machine: str
    gib: int
    seconds: tuple[float, ...]

    @property
    def speedups(self) -> tuple[float, ...]:
        """The speedups over one thread, as published."""
        return tuple(self.seconds[0] / each for each in self.seconds)


SERIES: Final = (
    Published("clear", XEON, 100, (41.13, 20.26, 9.62, 4.90, 3.94)),
    Published("clear", XEON, 200, (89.68, 40.64, 19.33, 9.98, 7.96)),
    Published("clear", XEON, 400, (188.20, 81.84, 40.62, 21.09, 15.97)),
    Published("clear", XEON, 800, (434.91, 170.97, 87.38, 42.86, 33.48)),
    Published("clear", SPARC, 50, (7.77, 3.95, 2.02, 1.24, 0.79)),
    Published("clear", SPARC, 100, (15.50, 8.10, 4.45, 2.99, 1.99)),
    Published("clear", SPARC, 200, (31.03, 16.47, 9.20, 6.01, 4.41)),
    Published("fallocate", XEON, 200, (127.53, 41.30, 22.29, 13.50, 13.09)),
    Published("fallocate", XEON, 400, (193.09, 90.31, 50.32, 37.75, 31.54)),
    Published("fallocate", SPARC, 100, (15.55, 8.08, 4.38, 2.65, 2.41)),
)


@dataclass(frozen=True)
class Fit:
    """A series in the model: the bandwidth of a thread and that of all together, in bytes per second."""

    published: Published
    thread: float
    together: float
    residuals: tuple[float, ...]
    """The measured time divided by the model's, minus 1, for each number of threads."""

    @property
    def error(self) -> float:
        """The root of the mean square of the residuals' logarithms."""
        return math.sqrt(sum(math.log1p(each) ** 2 for each in self.residuals) / len(self.residuals))

    @property
    def most(self) -> float:
        """The limit of the speedup for any number of threads."""
        return self.together / self.thread


def fit_one(published: Published, knee: float) -> Fit:
    """Fits by least squares of the logarithms; searches the ratio of both bandwidths on a grid of 2 %, 1 to 256."""
    rates = [published.gib * GIB / each for each in published.seconds]
    best: Fit | None = None
    for step in range(281):
        ratio = 1.02**step
        shape = [soft_minimum([float(count), ratio], knee) for count in THREADS]
        logs = [math.log(rate / one) for rate, one in zip(rates, shape, strict=True)]
        thread = math.exp(sum(logs) / len(logs))
        residuals = tuple(thread * one / rate - 1 for rate, one in zip(rates, shape, strict=True))
        fit = Fit(published, thread, thread * ratio, residuals)
        if best is None or fit.error < best.error:
            best = fit
    assert best is not None
    return best


def fit_through(few: tuple[int, float], many: tuple[int, float], knee: float) -> tuple[float, float]:
    """Returns the rates of a thread and of all together with which the model meets both (threads, rate) exactly.

    The speedup between them must be above 1 and below that of perfect threads.
    """
    (fewer, low), (more, high) = few, many
    thread = (low**-knee - high**-knee) / (fewer**-knee - more**-knee)
    return thread ** (-1 / knee), (high**-knee - more**-knee * thread) ** (-1 / knee)


def fit_all(series: Sequence[Published] = SERIES) -> tuple[float, list[Fit]]:
    """Returns the knee that suits all series best, and each series fitted with it."""
    fits = {knee: [fit_one(each, knee) for each in series] for knee in KNEES}
    knee = min(fits, key=lambda each: sum(fit.error**2 for fit in fits[each]))
    return knee, fits[knee]
