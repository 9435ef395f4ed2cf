"""The facts of ``metrics`` as text, by the prometheus_client library with a private registry.

node_exporter's textfile collector reads Prometheus text. OpenMetrics is an alternative.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final, TypeVar

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client import exposition as prometheus
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
)
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.registry import Collector

from ktaskfs.control.durations import BOUNDS
from ktaskfs.version import VERSION

if TYPE_CHECKING:
    from collections.abc import Iterable

    from prometheus_client.metrics_core import Metric

    from ktaskfs.control.facts import Facts

NAMESPACE: Final = "ktaskfs"
F = TypeVar("F", GaugeMetricFamily, CounterMetricFamily)
Values = Mapping[tuple[str, ...], float]

POOL_COUNTS: Final = (
    ("", "total", "Huge pages in the pool{of}."),
    ("_free", "free", "Huge pages{of} that are free, reserved ones included."),
    ("_reserved", "reserved", "Free huge pages{of} that mappings have reserved."),
    ("_surplus", "surplus", "Huge pages{of} beyond the configured size of the pool."),
)
"""Suffix of the metric's name, field of Pool, and help."""


def render_prometheus(facts: Facts) -> bytes:
    """The whole file in the Prometheus text format, version 0.0.4."""
    return prometheus.generate_latest(_registry(facts))


def render_openmetrics(facts: Facts) -> bytes:
    """The families as text of OpenMetrics 1.0."""
    text: bytes = openmetrics.generate_latest(_registry(facts))
    return text


def _registry(facts: Facts) -> CollectorRegistry:
    """The facts, and the library's own metrics of this process, under unique names."""
    registry = CollectorRegistry()
    ProcessCollector(namespace=NAMESPACE, registry=registry)
    registry.register(_FactsCollector(facts))
    return registry


class _FactsCollector(Collector):
    def __init__(self, facts: Facts) -> None:
        self._facts = facts

    def collect(self) -> Iterable[Metric]:
        facts = self._facts
        yield InfoMetricFamily(f"{NAMESPACE}_build", "The version.", {"version": VERSION})
        yield _family(GaugeMetricFamily, "tasks", "Tasks in the mount now.", ("operation", "state"), facts.tasks)
        yield _family(
            CounterMetricFamily,
            "tasks_started",
            "Tasks that began work since the mount.",
            ("operation",),
            facts.started,
        )
        yield _family(
            CounterMetricFamily,
            "tasks_refused",
            "Starts that failed since the mount, reported to the writer or in the task's error.",
            ("operation",),
            facts.refused,
        )
        yield _family(
            CounterMetricFamily,
            "tasks_ended",
            "Tasks that ended since the mount.",
            ("operation", "outcome"),
            facts.ended,
        )
        yield _family(
            CounterMetricFamily, "units_done", "Units of work done since the mount.", ("operation", "unit"), facts.units
        )
        yield _durations(facts)
        # Two families, because a sum over one with the pools of machine and nodes would count each page twice.
        for suffix, field, help in POOL_COUNTS:
            machine: Values = {(str(p.size),): getattr(p, field) for p in facts.pools if p.node is None}
            yield _family(GaugeMetricFamily, f"hugepages{suffix}", help.format(of=""), ("page_size",), machine)
        for suffix, field, help in POOL_COUNTS:
            if field != "reserved":  # the kernel counts them for the whole machine only
                nodes: Values = {
                    (str(p.size), str(p.node)): getattr(p, field) for p in facts.pools if p.node is not None
                }
                of = help.format(of=" of the node")
                yield _family(GaugeMetricFamily, f"node_hugepages{suffix}", of, ("page_size", "node"), nodes)
        yield _family(
            GaugeMetricFamily,
            "open_handles",
            "Open files and directories of the mount.",
            (),
            {(): facts.open_handles},
        )
        yield _family(
            GaugeMetricFamily,
            "event_loop_lag_seconds",
            "Delay of the daemon's event loop.",
            (),
            {(): facts.lag},
        )


def _durations(facts: Facts) -> HistogramMetricFamily:
    family = HistogramMetricFamily(
        f"{NAMESPACE}_task_duration_seconds",
        "Time from the start of work to its end, pauses included, of tasks that became done since the mount.",
        labels=("operation",),
    )
    for name, durations in facts.durations.items():
        buckets = [(str(bound), float(count)) for bound, count in zip(BOUNDS, durations.up_to(), strict=False)]
        family.add_metric((name,), [*buckets, ("+Inf", float(sum(durations.counts)))], durations.total)
    return family


def _family(kind: type[F], name: str, help: str, labels: tuple[str, ...], values: Values) -> F:
    """A family of samples: ``values`` by the values of ``labels``, the empty tuple without labels."""
    family = kind(f"{NAMESPACE}_{name}", help, labels=labels)
    for key, value in values.items():
        family.add_metric(key, value)
    return family
