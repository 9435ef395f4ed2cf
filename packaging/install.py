"""Installs ktaskfs from .venv into the system, and removes it: ``make install``, ``make uninstall``.

The command is installed below PREFIX, with a private Python environment that has copies of what was built and tested
in .venv; so the installation needs no network. mount(8) looks for its helpers only in /sbin, whatever PREFIX is.
DESTDIR is put before every path that is written, and is in none of the files. The running system does not change.
"""

from __future__ import annotations

import compileall
import contextlib
import filecmp
import os
import re
import runpy
import shutil
import sys
import tomllib
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ktaskfs.cli.completion import SCRIPTS

if TYPE_CHECKING:
    from collections.abc import Iterator

SOURCE: Final = Path(__file__).resolve().parents[1]
REQUIREMENT_NAME: Final = re.compile(r"[A-Za-z0-9._-]+")


class Installation:
    """The places of all files: ``prefix`` is the later path, ``destdir`` stands before it while files are written."""

    def __init__(self, prefix: str, destdir: str) -> None:
        self._destdir = destdir
        self._lib = f"{prefix}/lib/ktaskfs"
        self._command = f"{prefix}/sbin/ktaskfs"
        self._conf = "/etc/ktaskfs.conf"
        units = f"{prefix}/lib/systemd/system"
        self._edits = {"@SBINDIR@": f"{prefix}/sbin", "\nPATH=": f"\nPATH={prefix}/sbin:"}
        self._files = {
            "/usr/sbin/mount.ktaskfs": "mount/mount.ktaskfs",
            f"{units}/ktaskfs.service": "systemd/ktaskfs.service",
            f"{units}/ktaskfs-confined.service": "systemd/ktaskfs-confined.service",
            f"{units}/ktaskfs-boot.service": "systemd/ktaskfs-boot.service",
            f"{units}/ktaskfs.service.d/node-exporter.conf": "systemd/node-exporter.conf",
            f"{units}/ktaskfs-confined.service.d/node-exporter.conf": "systemd/node-exporter.conf",
            f"{units}/postgresql@.service.d/ktaskfs.conf": "systemd/postgresql-after-ktaskfs.conf",
            f"{units}/run-ktaskfs.mount": "systemd/run-ktaskfs.mount",
            f"{units}/run-ktaskfs.automount": "systemd/run-ktaskfs.automount",
            f"{prefix}/lib/systemd/system-preset/90-ktaskfs.preset": "systemd/ktaskfs.preset",
            f"{prefix}/lib/sysusers.d/ktaskfs.conf": "systemd/ktaskfs.sysusers",
            f"{prefix}/lib/tmpfiles.d/ktaskfs.conf": "systemd/ktaskfs.tmpfiles",
            f"{prefix}/share/doc/ktaskfs/fstab.example": "packaging/fstab.example",
            f"{prefix}/share/doc/ktaskfs/libvirt_hook.py": "packaging/libvirt_hook.py",
            f"{prefix}/share/doc/ktaskfs/slurm_hook.sh": "packaging/slurm_hook.sh",
            f"{prefix}/share/doc/ktaskfs/README.md": "README.md",
        }
        self._links = {"/usr/sbin/mount.fuse.ktaskfs": "mount.ktaskfs"}
        if not any(is_one_directory(f"{root}{prefix}/bin", f"{root}{prefix}/sbin") for root in (destdir, "")):
            self._links[f"{prefix}/bin/ktaskfs"] = "../sbin/ktaskfs"  # ordinary users have no sbin in their PATH
        completions = (
            ("bash", "bash-completion/completions/ktaskfs"),
            ("zsh", "zsh/site-functions/_ktaskfs"),
            ("fish", "fish/vendor_completions.d/ktaskfs.fish"),
        )
        pages = runpy.run_path(str(SOURCE / "docs/man/generate.py"))["pages"]()
        self._texts = {f"{prefix}/share/man/man{name[-1]}/{name}": text for name, text in pages.items()}
        self._texts |= {f"{prefix}/share/{place}": SCRIPTS[shell] for shell, place in completions}

    def _at(self, path: str) -> Path:
        return Path(self._destdir + path)

    def install(self) -> None:
        """Write everything; /etc/ktaskfs.conf only if it does not exist."""
        self._remove(self._lib)
        self._install_environment()
        self._write(self._command, self._launcher(), 0o755)
        for path, source in self._files.items():
            text = (SOURCE / source).read_text(encoding="utf-8")
            for old, new in self._edits.items():
                text = text.replace(old, new)
            self._write(path, text, 0o755 if os.access(SOURCE / source, os.X_OK) else 0o644)
        for path, text in self._texts.items():
            self._write(path, text, 0o644)
        for path, target in self._links.items():
            self._at(path).parent.mkdir(parents=True, exist_ok=True)
            self._remove(path)
            self._at(path).symlink_to(target)
        if not self._at(self._conf).exists():
            self._write(self._conf, (SOURCE / "systemd/ktaskfs.conf").read_text(encoding="utf-8"), 0o644)

    def _write(self, path: str, text: str, mode: int) -> None:
        self._at(path).parent.mkdir(parents=True, exist_ok=True)
        self._remove(path)
        self._at(path).write_text(text, encoding="utf-8")
        self._at(path).chmod(mode)

    def _launcher(self) -> str:
        # -I: no module from the caller's environment or directory runs as root.
        return f"#!{self._lib}/bin/python -I\nimport sys\n\nfrom ktaskfs.cli.main import main\n\nsys.exit(main())\n"

    def _install_environment(self) -> None:
        """Makes a venv without the module venv, which would write DESTDIR into it."""
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        base = Path(os.path.realpath(sys.executable))
        packages = self._at(f"{self._lib}/lib/python{version}/site-packages")
        packages.mkdir(parents=True)
        self._at(f"{self._lib}/bin").mkdir()
        self._at(f"{self._lib}/bin/python").symlink_to(base)
        self._write(f"{self._lib}/pyvenv.cfg", f"home = {base.parent}\nversion = {version}\n", 0o644)
        shutil.copytree(SOURCE / "ktaskfs", packages / "ktaskfs", ignore=shutil.ignore_patterns("__pycache__"))
        project = tomllib.loads((SOURCE / "pyproject.toml").read_text())["project"]
        requirements = [*project["dependencies"], *project["optional-dependencies"]["top"]]
        for distribution in needed(requirements):
            for file in distribution.files or ():
                if ".." not in file.parts and "__pycache__" not in file.parts:  # no scripts
                    (packages / file).parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy(str(distribution.locate_file(file)), packages / file)
        compileall.compile_dir(packages, quiet=2, stripdir=self._destdir or None)
        for path in self._at(self._lib).rglob("*"):  # whatever the umask and the modes in .venv are
            if not path.is_symlink():
                path.chmod(0o755 if path.is_dir() else 0o644)

    def uninstall(self) -> None:
        """Remove everything; /etc/ktaskfs.conf only if it is unchanged."""
        for path in (self._lib, self._command, *self._files, *self._texts, *self._links):
            self._remove(path)
            if path.endswith("README.md") or ".service.d/" in path:
                with contextlib.suppress(OSError):  # it is gone already, or others have files in it
                    self._at(path).parent.rmdir()
        if self._at(self._conf).exists():
            if filecmp.cmp(self._at(self._conf), SOURCE / "systemd/ktaskfs.conf", shallow=False):
                self._remove(self._conf)
            else:
                print(f"kept, because it was changed: {self._conf}")

    def _remove(self, path: str) -> None:
        if self._at(path).is_dir() and not self._at(path).is_symlink():
            shutil.rmtree(self._at(path))
        else:
            self._at(path).unlink(missing_ok=True)


def is_one_directory(one: str, other: str) -> bool:
    """Whether two paths are the same directory, as /usr/bin and /usr/sbin on some distributions."""
    return os.path.realpath(one) == os.path.realpath(other)


def needed(requirements: list[str]) -> Iterator[metadata.Distribution]:
    """The installed distributions in ``requirements``, and those that they require, each once."""
    seen = set()
    waiting = list(requirements)
    while waiting:
        requirement = waiting.pop()
        match = REQUIREMENT_NAME.match(requirement)
        condition = requirement.partition(";")[2]
        if match is None or match[0] in seen or "extra" in condition:
            continue
        seen.add(match[0])
        try:
            distribution = metadata.distribution(match[0])
        except metadata.PackageNotFoundError:
            if condition:  # for another Python or system
                continue
            raise
        waiting += distribution.requires or ()
        yield distribution


def main() -> None:
    """``install.py install|uninstall PREFIX [DESTDIR]``."""
    verb, prefix, destdir = [*sys.argv[1:], ""][:3]
    os.umask(0o022)
    installation = Installation(prefix.rstrip("/"), destdir.rstrip("/"))
    {"install": installation.install, "uninstall": installation.uninstall}[verb]()
    if verb == "install" and not destdir:
        print(
            "next: systemd-sysusers; systemd-tmpfiles --create; systemctl daemon-reload; systemctl enable --now ktaskfs"
        )


if __name__ == "__main__":
    main()
