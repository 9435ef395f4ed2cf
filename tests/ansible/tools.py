"""A copy of the collection where Ansible finds it, and releases of Ansible in the cache of the tests."""

from __future__ import annotations

import contextlib
import fcntl
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tests.support.daemon import ROOT
from tests.support.packages import CACHE, Unavailable

if TYPE_CHECKING:
    from collections.abc import Iterator

COLLECTION: Final = ROOT / "ansible"
PLACE: Final = "ansible_collections/ktaskfs/host"
OLDEST: Final = "oldest"
NEWEST: Final = "newest"
PINS: Final = Path(__file__).parent


def copy_collection(directory: Path) -> Path:
    """Copy the collection to its place for Ansible below ``directory``; returns its path."""
    place = directory / PLACE
    shutil.copytree(COLLECTION, place, ignore=shutil.ignore_patterns("__pycache__", ".ansible", "output"))
    return place


@contextlib.contextmanager
def alone(directory: Path) -> Iterator[None]:
    """Hold a lock, so that two runs of the tests do not make an environment at the same time."""
    directory.parent.mkdir(parents=True, exist_ok=True)
    with directory.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def environment(release: str) -> Path:
    """Returns the directory with the programs of a release of Ansible, OLDEST or NEWEST; raises Unavailable.

    Its packages are those of NAME.txt in this folder. They are installed once, and again if that file changes.
    """
    pins = PINS / f"{release}.txt"
    directory = CACHE / f"ansible-{release}"
    made_from = directory / pins.name
    try:
        with alone(directory):
            if not made_from.exists() or made_from.read_text() != pins.read_text():
                subprocess.run([sys.executable, "-m", "venv", "--clear", directory], capture_output=True, check=True)
                pip: list[str | Path] = [
                    directory / "bin/python",
                    "-m",
                    "pip",
                    "install",
                    "--quiet",
                    "--requirement",
                    pins,
                ]
                subprocess.run(pip, capture_output=True, text=True, check=True)
                shutil.copy(pins, made_from)
    except subprocess.CalledProcessError as error:
        raise Unavailable(f"Ansible cannot be installed: {error.stderr or error.stdout}") from error
    except OSError as error:
        raise Unavailable(f"Ansible cannot be installed: {error}") from error
    return directory / "bin"


BOOTSTRAP: Final = """import ensurepip, subprocess, sys
ensurepip.bootstrap()
options = [each for each in sys.argv[1:] if each not in ("--no-setuptools", "--no-wheel")]
sys.exit(subprocess.call([sys.executable, "-m", "pip", "install", *options]))
"""
"""Replaces get-pip.py, which ansible-test would download from a host of the Ansible project."""


def sanity_home(programs: Path) -> Path:
    """Returns the home directory for ansible-test, which has its environments; raises Unavailable."""
    home = CACHE / "ansible-home"
    scripts = home / ".ansible/test/cache"
    scripts.mkdir(parents=True, exist_ok=True)
    (requirements,) = programs.parent.glob("lib/python*/site-packages/ansible_test/_internal/python_requirements.py")
    versions = re.findall(r"\bpip='([\d.]+)'", requirements.read_text())
    if not versions:
        raise Unavailable(f"{requirements} does not say which pip ansible-test installs")
    for version in versions:
        (scripts / f"get_pip_{version.replace('.', '_')}.py").write_text(BOOTSTRAP)
    return home
