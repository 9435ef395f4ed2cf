"""Writes the dashboard for Grafana: ``python docs/monitoring/dashboard.py`` after PANELS has changed."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

FILE: Final = Path(__file__).with_name("dashboard.json")
COLUMNS: Final = 24
HOST: Final = 'instance=~"$instance"'
SOURCE: Final = {"type": "prometheus", "uid": "${datasource}"}


@dataclass(frozen=True)
class Panel:
    """One picture: ``queries`` are expressions by their legends; ``unit`` is Grafana's word."""

    title: str
    queries: dict[str, str]
    unit: str = "short"
    kind: str = "timeseries"
    width: int = 12
    height: int = 8
    description: str = ""


def _sum(what: str, by: str) -> str:
    return f"sum by ({by}) ({what})"


def _rate(name: str) -> str:
    return f"rate({name}{{{HOST}}}[$__rate_interval])"


PANELS: Final = (
    Panel(
        "at work", {"tasks": f'sum(ktaskfs_tasks{{{HOST},state=~"running|paused|starting"}})'}, "short", "stat", 4, 4
    ),
    Panel("queued", {"tasks": f'sum(ktaskfs_tasks{{{HOST},state="queued"}})'}, "short", "stat", 4, 4),
    Panel(
        "failed or interrupted, last hour",
        {"tasks": f'sum(increase(ktaskfs_tasks_ended_total{{{HOST},outcome=~"failed|interrupted"}}[1h]))'},
        "short",
        "stat",
        4,
        4,
    ),
    Panel(
        "refused, last hour",
        {"starts": f"sum(increase(ktaskfs_tasks_refused_total{{{HOST}}}[1h]))"},
        "short",
        "stat",
        4,
        4,
    ),
    Panel(
        "huge pages free",
        {
            "{{page_size}}": _sum(
                f"ktaskfs_hugepages_free{{{HOST}}} - ktaskfs_hugepages_reserved{{{HOST}}}", "page_size"
            )
        },
        "short",
        "stat",
        4,
        4,
    ),
    Panel("version", {"{{version}}": f"ktaskfs_build_info{{{HOST}}}"}, "short", "stat", 4, 4),
    Panel(
        "bytes a second, by operation",
        {
            "{{operation}}": _sum(
                f'rate(ktaskfs_units_done_total{{{HOST},unit="bytes"}}[$__rate_interval])', "operation"
            )
        },
        "binBps",
    ),
    Panel(
        "pages a second, by operation",
        {
            "{{operation}}": _sum(
                f'rate(ktaskfs_units_done_total{{{HOST},unit="pages"}}[$__rate_interval])', "operation"
            )
        },
    ),
    Panel("tasks, by state", {"{{state}}": _sum(f"ktaskfs_tasks{{{HOST}}}", "state")}),
    Panel(
        "starts and ends a second",
        {
            "started": f"sum({_rate('ktaskfs_tasks_started_total')})",
            "refused": f"sum({_rate('ktaskfs_tasks_refused_total')})",
            "{{outcome}}": _sum(_rate("ktaskfs_tasks_ended_total"), "outcome"),
        },
    ),
    Panel(
        "duration of done tasks, 95th percentile, by operation",
        {
            "{{operation}}": "histogram_quantile(0.95, "
            + _sum(_rate("ktaskfs_task_duration_seconds_bucket"), "operation, le")
            + ")"
        },
        "s",
    ),
    Panel(
        "tasks done a second, by operation",
        {"{{operation}}": _sum(_rate("ktaskfs_task_duration_seconds_count"), "operation")},
    ),
    Panel(
        "huge pages of the machine",
        {
            "{{instance}} {{page_size}} total": f"ktaskfs_hugepages{{{HOST}}}",
            "{{instance}} {{page_size}} free": f"ktaskfs_hugepages_free{{{HOST}}}",
            "{{instance}} {{page_size}} reserved": f"ktaskfs_hugepages_reserved{{{HOST}}}",
            "{{instance}} {{page_size}} surplus": f"ktaskfs_hugepages_surplus{{{HOST}}}",
        },
        description="info/holders in the mount shows the holders.",
    ),
    Panel(
        "huge pages free, by NUMA node",
        {"{{instance}} node {{node}} {{page_size}}": f"ktaskfs_node_hugepages_free{{{HOST}}}"},
    ),
    Panel("daemon: memory", {"{{instance}}": f"ktaskfs_process_resident_memory_bytes{{{HOST}}}"}, "bytes", width=6),
    Panel("daemon: CPUs", {"{{instance}}": _rate("ktaskfs_process_cpu_seconds_total")}, width=6),
    Panel("daemon: lag", {"{{instance}}": f"ktaskfs_event_loop_lag_seconds{{{HOST}}}"}, "s", width=6),
    Panel("daemon: open files of the mount", {"{{instance}}": f"ktaskfs_open_handles{{{HOST}}}"}, width=6),
)


def _laid_out() -> list[dict[str, Any]]:
    """The panels from left to right, in rows as wide as the screen."""
    x = y = row = 0
    made = []
    for number, panel in enumerate(PANELS, 1):
        if x + panel.width > COLUMNS:
            x, y, row = 0, y + row, 0
        targets = [
            {"refId": chr(ord("A") + index), "expr": expr, "legendFormat": legend, "datasource": SOURCE}
            for index, (legend, expr) in enumerate(panel.queries.items())
        ]
        made.append(
            {
                "id": number,
                "title": panel.title,
                "description": panel.description,
                "type": panel.kind,
                "datasource": SOURCE,
                "gridPos": {"x": x, "y": y, "w": panel.width, "h": panel.height},
                "fieldConfig": {"defaults": {"unit": panel.unit}, "overrides": []},
                "options": {"textMode": "value_and_name"} if panel.title == "version" else {},
                "targets": targets,
            }
        )
        x, row = x + panel.width, max(row, panel.height)
    return made


def dashboard() -> str:
    """The whole of it, as Grafana imports it."""
    instance = {
        "name": "instance",
        "type": "query",
        "datasource": SOURCE,
        "query": "label_values(ktaskfs_build_info, instance)",
        "refresh": 2,
        "multi": True,
        "includeAll": True,
    }
    whole = {
        "title": "ktaskfs",
        "uid": "ktaskfs",
        "tags": ["ktaskfs", "hugepages"],
        "schemaVersion": 39,
        "refresh": "30s",
        "time": {"from": "now-3h", "to": "now"},
        "templating": {"list": [{"name": "datasource", "type": "datasource", "query": "prometheus"}, instance]},
        "panels": _laid_out(),
    }
    return json.dumps(whole, indent=2) + "\n"


if __name__ == "__main__":
    FILE.write_text(dashboard(), encoding="utf-8")
