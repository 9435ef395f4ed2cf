"""node_exporter from Debian's package, in a booted system."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from tests.support.poll import until

if TYPE_CHECKING:
    from tests.systemd.machine import Machine

EXPORTER: Final = "prometheus-node-exporter"
OWN_NETWORK: Final = f"""
mkdir -p /etc/systemd/system/{EXPORTER}.service.d
printf '[Service]\\nPrivateNetwork=yes\\nPrivateMounts=no\\n' >/etc/systemd/system/{EXPORTER}.service.d/network.conf
"""
"""A set-up of the system before it boots: the exporter's port is then not that of another one on this machine.

With mounts of its own it would not see a new mount of ktaskfs, because / of the booted system is not shared.
"""
SCRAPE: Final = f"""
pid=$(systemctl show --value --property=MainPID {EXPORTER})
exec nsenter --net --target "$pid" bash -c '
exec 3<>/dev/tcp/127.0.0.1/9100 && printf "GET /metrics HTTP/1.0\\r\\n\\r\\n" >&3 && cat <&3'
"""
"""By bash, because the system has no program for it when ktaskfs is gone."""


class Exporter:
    """The service of the package."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine

    def errors_and_versions(self) -> tuple[float, list[str]]:
        """Whether the textfile collector had an error, and the versions of ktaskfs in what the exporter gives."""
        until(lambda: self._machine.sh(SCRAPE).status == 0, "the exporter, which has just been started, answers")
        text = self._machine.sh(SCRAPE).out
        (errors,) = re.findall(r"^node_textfile_scrape_error (\S+)$", text, re.MULTILINE)
        return float(errors), re.findall(r'^ktaskfs_build_info\{version="(.*?)"\} 1$', text, re.MULTILINE)

    def purge(self) -> None:
        """Remove it with all that it has made."""
        done = self._machine.sh(f"DEBIAN_FRONTEND=noninteractive apt-get -q -y purge {EXPORTER} 2>&1")
        assert done.status == 0, done.out
