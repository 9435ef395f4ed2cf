"""The newest release of Ansible in a system of the newest Debian, because Debian 12 has too old a Python for it."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tests.ansible.plays import Ansible
from tests.ansible.tools import alone
from tests.packaging.chroot import INSTALL, NEWEST, Release, fresh, run_in
from tests.support.daemon import ROOT
from tests.support.packages import Unavailable
from tests.support.shell import Outcome

if TYPE_CHECKING:
    from collections.abc import Sequence

PROGRAMS: Final = "/opt/ansible/bin"
MAKE: Final = f"""
apt-get -q update
{INSTALL} --no-install-recommends python3-venv openssh-client
apt-get clean
python3 -m venv /opt/ansible
[ ! -e /mnt/pip.crt ] || export PIP_CERT=/mnt/pip.crt
/opt/ansible/bin/pip install --quiet ansible-core
"""


def layers(directory: Path, release: Release = NEWEST) -> list[Path]:
    """Returns the layers of a system with Ansible, kept in the cache. ``directory`` is empty. Raises Unavailable."""
    base, layer = fresh(release), release.place / "ansible"
    with alone(layer):
        if not layer.exists():
            new = release.place / "ansible.new"
            shutil.rmtree(new, ignore_errors=True)
            if certificate := os.environ.get("PIP_CERT"):
                shutil.copy(certificate, directory / "pip.crt")
            try:
                run_in([base], MAKE, upper=new, binds={directory: "/mnt"})
            except subprocess.CalledProcessError as error:
                raise Unavailable(f"Ansible cannot be installed: {error.stdout[-1000:]}") from error
            new.rename(layer)
    return [layer, base]


class NewerAnsible(Ansible):
    """Ansible in that system. ``prefix`` enters the hosts' network; ``home`` has the files of the connections."""

    def __init__(self, system: Sequence[Path], collections: Path, home: Path, prefix: Sequence[str]) -> None:
        super().__init__(Path(PROGRAMS), collections, home, prefix)
        self._system = system
        self._binds = {each: str(each) for each in (collections, home, ROOT / "tests/ansible/callback")}

    def __call__(self, program: str, *words: str, cwd: Path | None = None, **variables: str) -> Outcome:
        """As in Ansible, but standard error is part of the output."""
        settings = {**self._env, "PATH": f"{PROGRAMS}:/usr/bin:/bin", **variables}
        script = shlex.join(["env", *(f"{name}={value}" for name, value in settings.items()), program, *words])
        try:
            return Outcome(0, run_in(self._system, script, binds=self._binds, prefix=self._prefix), "")
        except subprocess.CalledProcessError as error:
            return Outcome(error.returncode, error.stdout, "")
