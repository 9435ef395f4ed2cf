"""Fresh systems of Debian's releases, and builds in them; kept in the cache of the tests."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from tests.support.packages import APT, CACHE, Unavailable, apt_get

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

MIRROR: Final = "http://deb.debian.org/debian"
BASE: Final = ("adduser", "dbus", "procps", "systemd", "systemd-sysv")
"""Packages of a fresh system beside the essential ones: for booting, and for listing processes."""
NEEDED: Final = ("python3", "fuse3")
"""The dependencies of the package: downloaded, not installed."""
TO_BUILD: Final = ("build-essential", "debhelper", "libfuse3-dev", "pkgconf", "python3-dev", "python3-venv")
TO_CHECK: Final = ("lintian",)
"""Only of the newest release, which checks the packages of all: it needs more than a hundred packages of Debian."""
INSTALL: Final = f"DEBIAN_FRONTEND=noninteractive apt-get {' '.join(APT)} -o Dpkg::Options::=--force-unsafe-io install"
HERE: Final = """
set -eu
mount -t tmpfs -o mode=755,size=4g none "$1"
mkdir "$1/upper" "$1/work" "$1/root"
mount -t overlay -o "lowerdir=$2,upperdir=${3:-$1/upper},workdir=${3:-$1/}work" none "$1/root"
mount -t proc proc "$1/root/proc"
mount --rbind /dev "$1/root/dev"
mount -t tmpfs -o mode=1777 none "$1/root/tmp"
cp -L /etc/resolv.conf "$1/root/etc/resolv.conf"
root=$1/root script=$4
shift 4
for each; do # SOURCE:PLACE
    mkdir -p "$root${each#*:}"
    mount --bind "${each%%:*}" "$root${each#*:}"
done
exec chroot "$root" /bin/sh -euc "$script"
"""


class Release(NamedTuple):
    """A release of Debian."""

    number: int
    name: str

    @property
    def place(self) -> Path:
        """The layers of its systems: ``base``, and ``build`` over it, which has the build dependencies."""
        return CACHE / f"debian-{self.name}"


RELEASES: Final = (Release(12, "bookworm"), Release(13, "trixie"))
NEWEST: Final = RELEASES[-1]


def run_in(
    lower: Sequence[Path],
    script: str,
    *,
    binds: Mapping[Path, str] | None = None,
    upper: Path | None = None,
    prefix: Sequence[str] = (),
) -> str:
    """Run a script of sh as root in the system of these layers, the top one first; returns what it prints.

    Changes are lost, or are in the layer ``upper``. ``binds``: directories, and their places in the system. ``prefix``
    comes before the command that makes the system. Raises CalledProcessError.
    """
    with tempfile.TemporaryDirectory(prefix="kt-chroot-") as point, contextlib.ExitStack() as made:
        if upper is not None:
            for path in (upper, Path(f"{upper}work")):
                path.mkdir()
            made.callback(shutil.rmtree, f"{upper}work")
        where = [point, ":".join(map(str, lower)), "" if upper is None else str(upper), script]
        pairs = [f"{source}:{place}" for source, place in (binds or {}).items()]
        unshare = [*prefix, "unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c", HERE, "sh"]
        done = subprocess.run(
            [*unshare, *where, *pairs],
            env=_environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
    if done.returncode != 0:
        raise subprocess.CalledProcessError(done.returncode, ["chroot", script], done.stdout)
    return done.stdout


def _environment() -> dict[str, str]:
    """The files that configure the network, and nothing else of this machine."""
    ways = ("http_proxy", "https_proxy", "no_proxy", "PIP_INDEX_URL", "PIP_CERT", "PIP_DEFAULT_TIMEOUT")
    kept = {name: value for name, value in os.environ.items() if name in ways or name.lower() in ways}
    return kept | {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8", "HOME": "/root"}


@contextlib.contextmanager
def _alone(release: Release) -> Iterator[None]:
    """Two runs of the tests do not make a system at the same time. Raises Unavailable where it cannot be had."""
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        raise Unavailable("only root of a Debian can make systems of its releases")
    release.place.mkdir(parents=True, exist_ok=True)
    with (release.place / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            yield
        except subprocess.CalledProcessError as error:
            raise Unavailable(f"{' '.join(error.cmd)}: {error.stderr or error.stdout}") from error


def fresh(release: Release) -> Path:
    """A fresh system without the package's dependencies; raises Unavailable."""
    base = release.place / "base"
    with _alone(release):
        if not base.exists():
            if shutil.which("mmdebstrap") is None:
                apt_get("update")
                apt_get("install", "--no-install-recommends", "mmdebstrap")
            new = release.place / "base.new"
            shutil.rmtree(new, ignore_errors=True)
            download = f'chroot "$1" apt-get -q -y install --download-only --no-install-recommends {" ".join(NEEDED)}'
            command = ["mmdebstrap", "--variant=minbase", f"--include={','.join(BASE)}", "--skip=cleanup/apt"]
            command += ["--dpkgopt=force-unsafe-io", f"--customize-hook={download}"]
            source = f"deb {MIRROR} {release.name} main"
            subprocess.run([*command, "--quiet", release.name, new, source], capture_output=True, text=True, check=True)
            new.rename(base)
    return base


def archive(release: Release, package: str) -> Path:
    """The file of a package whose dependencies a fresh system has; raises Unavailable."""
    base, place = fresh(release), release.place / f"{package}.deb"
    with _alone(release), tempfile.TemporaryDirectory(dir=release.place) as directory:
        if not place.exists():
            script = f"apt-get -q update; cd /out; apt-get -q -o APT::Sandbox::User=root download {package}"
            run_in([base], script, binds={Path(directory): "/out"})
            next(Path(directory).glob("*.deb")).rename(place)
    return place


def with_tools(release: Release) -> list[Path]:
    """The layers of a system that can build packages, and the newest check them; raises Unavailable."""
    base, layer = fresh(release), release.place / "build"
    tools = (*TO_BUILD, *(TO_CHECK if release == NEWEST else ()))
    with _alone(release):
        if not layer.exists():
            new = release.place / "build.new"
            shutil.rmtree(new, ignore_errors=True)
            script = f"apt-get -q update; {INSTALL} --no-install-recommends {' '.join(tools)}; apt-get clean"
            run_in([base], script, upper=new)
            new.rename(layer)
    return [layer, base]
