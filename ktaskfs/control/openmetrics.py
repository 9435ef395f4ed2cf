"""The facts of ``metrics`` as OpenMetrics text, by the prometheus_client library with a registry of our own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final, TypeVar

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily
from prometheus_client.openmetrics.exposition import generate_latest
from prometheus_client.registry import Collector

from ktaskfs.version import VERSION

if TYPE_CHECKING:
    from collections.abc import Iterable

    from prometheus_client.metrics_core import Metric

    from ktaskfs.control.facts import Facts

PREFIX: Final = "ktaskfs_"
F = TypeVar("F", GaugeMetricFamily, CounterMetricFamily)
Values = Mapping[tuple[str, ...], float]


def render(facts: Facts) -> str:
    """The whole file. The metrics ``process_*`` are the library's own, read from /proc/self."""
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    registry.register(_FactsCollector(facts))
    text: bytes = generate_latest(registry)  # type: ignore[no-untyped-call]
    return text.decode()


class _FactsCollector(Collector):
    def __init__(self, facts: Facts) -> None:
        self._facts = facts

    def collect(self) -> Iterable[Metric]:
        facts = self._facts
        yield InfoMetricFamily(f"{PREFIX}build", "What runs here.", {"version": VERSION})
        yield _family(GaugeMetricFamily, "tasks", "Tasks in the mount now.", ("operation", "state"), facts.tasks)
        yield _family(
            CounterMetricFamily, "tasks_started", "Tasks set to work since the mount.", ("operation",), facts.started
        )
        yield _family(
            CounterMetricFamily,
            "tasks_refused",
            "Starts since the mount that came to nothing, told to the writer or only in the task's error.",
            ("operation",),
            facts.refused,
        )
        yield _family(
            CounterMetricFamily,
            "tasks_ended",
            "Tasks whose end was seen since the mount.",
            ("operation", "outcome"),
            facts.ended,
        )
        yield _family(
            CounterMetricFamily, "units_done", "Units of work done since the mount.", ("operation", "unit"), facts.units
        )
        for name, help in (
            ("total", "Huge pages in the pool."),
            ("free", "Huge pages that are free, reserved ones included."),
            ("reserved", "Free huge pages promised to mappings; the kernel counts them for the whole machine only."),
            ("surplus", "Huge pages beyond the set size of the pool."),
        ):
            values: Values = {
                (str(pool.size), "" if pool.node is None else str(pool.node)): getattr(pool, name)
                for pool in facts.pools
                if name != "reserved" or pool.node is None
            }
            yield _family(GaugeMetricFamily, f"hugepages_{name}", help, ("page_size", "node"), values)
        yield _family(
            GaugeMetricFamily,
            "open_handles",
            "Files and directories of the mount that are open.",
            (),
            {(): facts.load.open_handles},
        )
        yield _family(
            GaugeMetricFamily,
            "event_loop_lag_seconds",
            "How long the daemon's loop took to come round.",
            (),
            {(): facts.lag},
        )


def _family(kind: type[F], name: str, help: str, labels: tuple[str, ...], values: Values) -> F:
    """A family of samples: ``values`` by the values of ``labels``, the empty tuple where there are no labels."""
    family = kind(PREFIX + name, help, labels=labels)
    for key, value in values.items():
        family.add_metric(key, value)
    return family
