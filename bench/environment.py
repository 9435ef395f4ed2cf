"""The machine on which the figures were measured."""

from __future__ import annotations

import datetime
import os
import platform
import re
from importlib.metadata import version
from pathlib import Path

import psutil

from ktaskfs.units import human_size


def describe() -> dict[str, str]:
    """Machine, kernel and versions, in the order to print them."""
    cpuinfo = Path("/proc/cpuinfo").read_text()
    model = re.search(r"^model name\s*:\s*(.*)$", cpuinfo, re.MULTILINE)
    virtual = re.search(r"^flags.*\bhypervisor\b", cpuinfo, re.MULTILINE)
    return {
        "machine": (model[1] if model else platform.machine()) + (" (virtual)" if virtual else ""),
        "CPUs": str(len(os.sched_getaffinity(0))),
        "memory": human_size(psutil.virtual_memory().total),
        "nodes": str(len(list(Path("/sys/devices/system/node").glob("node[0-9]*"))) or 1),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "pyfuse3": version("pyfuse3"),
        "trio": version("trio"),
        "load before": f"{os.getloadavg()[0]:.2f}",
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }
