"""Slurm on the hosts of ``tests.fleet``: slurmctld on the first, slurmd on each, with the hook."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tests.fleet.hosts import NET
from tests.support.daemon import ROOT
from tests.support.poll import DEADLINE, until
from tests.support.shell import Outcome, run

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.fleet.hosts import Host, Place
    from tests.support.users import User

NODE: Final = Path(__file__).with_name("node.sh")
HOOK: Final = ROOT / "packaging/slurm_hook.sh"
NEEDED: Final = ("slurmctld", "slurmd", "srun", "squeue", "scontrol", "munged")
PAGE: Final = 2 << 20
PAGES: Final = 4
"""Pages that each node reports."""
CONFIGURATION: Final = f"""
ClusterName=test
SlurmctldHost=hv1({NET}.11)
SlurmUser=root
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=bf_interval=1,sched_interval=1
MessageTimeout={DEADLINE:.0f}
TCPTimeout={DEADLINE:.0f}
BatchStartTimeout={DEADLINE:.0f}
GresTypes=hugepages
SlurmdParameters=config_overrides
StateSaveLocation=/run/slurm/ctld
SlurmdSpoolDir=/run/slurm/d
SlurmctldPidFile=/run/slurm/ctld.pid
SlurmdPidFile=/run/slurm/d.pid
SlurmctldLogFile=/run/slurm/ctld.log
SlurmdLogFile=/run/slurm/d.log
Prolog={HOOK}
Epilog={HOOK}
TaskProlog={HOOK}
PrologFlags=Alloc
"""


class Cluster:
    """Three nodes, of which the second has room for half of the pages that it promises."""

    def __init__(self, fleet: tuple[Place, list[Host]], user: User) -> None:
        place, self.hosts = fleet
        self.user = user
        address = {host.name: f"{NET}.{10 + number}" for number, host in enumerate(self.hosts, 1)}
        nodes = [
            f"NodeName={name} NodeAddr={each} CPUs=2 RealMemory=100 Gres=hugepages:{PAGES}"
            for name, each in address.items()
        ]
        lines = [CONFIGURATION, *nodes, "PartitionName=all Nodes=ALL Default=YES State=UP\n"]
        (place.directory / "slurm.conf").write_text("\n".join(lines))
        (place.directory / "gres.conf").write_text(f"Name=hugepages Count={PAGES}\n")
        (place.directory / "hosts").write_text("".join(f"{each} {name}\n" for name, each in address.items()))
        (place.directory / "munge.key").write_bytes(os.urandom(128))
        for host in self.hosts:
            room = PAGES * PAGE >> (host.name == "hv2")
            host.sh(f"{NODE} {place.directory} {room} {sys.executable}")
        self.until_idle("hv[1-3]")

    def until_idle(self, nodes: str) -> None:
        """Return when the nodes wait for jobs: all epilogs have ended well."""
        states = f"sinfo --noheader --nodes={nodes} --format=%T"
        until(lambda: self.hosts[0].sh(states) == "idle\n", f"{nodes} are idle")

    def until_drained(self, node: str) -> str:
        """Return when the node takes no more jobs and has none; the reason."""
        states = f"sinfo --noheader --nodes={node} --format=%T"
        until(lambda: self.hosts[0].sh(states) == "drained\n", f"{node} is drained")
        return self.hosts[0].sh(f"sinfo --noheader --nodes={node} --format=%E").strip()

    def resume(self, node: str) -> None:
        """Have it take jobs again."""
        self.hosts[0].sh(f"scontrol update NodeName={node} State=RESUME")
        self.until_idle(node)

    @property
    def _as_user(self) -> list[str]:
        ids = [f"--reuid={self.user.uid}", f"--regid={self.user.gid}"]
        return [*self.hosts[0].prefix, "setpriv", *ids, "--clear-groups"]

    def _words(self, nodes: str, script: str, options: Sequence[str]) -> list[str]:
        srun = ["srun", "--chdir=/", f"--nodelist={nodes}", "--ntasks-per-node=1", *options]
        return [*self._as_user, *srun, "bash", "-c", script]

    def batch(self, nodes: str, script: str, *options: str) -> Outcome:
        """Run a script by sbatch(1) as an ordinary user, and wait for its end; the status is that of the script."""
        words = ["--wait", "--chdir=/", "--output=/dev/null", f"--wrap={script}", f"--nodelist={nodes}", *options]
        return run(*self._as_user, "sbatch", *words)

    def job(self, nodes: str, script: str, *options: str) -> Outcome:
        """Run a script of bash as an ordinary user on each of the nodes, and wait for its end."""
        return run(*self._words(nodes, script, options))

    def started(self, nodes: str, script: str, *options: str) -> subprocess.Popen[str]:
        """The same job at work."""
        pipe = subprocess.PIPE
        return subprocess.Popen(self._words(nodes, script, options), stdout=pipe, stderr=pipe, text=True)
