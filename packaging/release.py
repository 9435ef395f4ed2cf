"""Set the version of a release in the files of this repository: ``python packaging/release.py VERSION``.

``make release`` runs it after the tests, then builds, commits and tags. The entry of the version in CHANGELOG.md must
exist and be unreleased; it gets today's date.
"""

from __future__ import annotations

import datetime
import re
import subprocess
import sys
from pathlib import Path
from typing import Final

VERSION: Final = re.compile(r"(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)")
FILE: Final = Path("ktaskfs/version.py")
MANIFEST: Final = Path("docs/how-to/ktaskfs-kubernetes.yaml")
CHANGES: Final = Path("CHANGELOG.md")


class CannotRelease(Exception):
    """The reason is its message."""


def set_version(root: Path, version: str, today: datetime.date) -> None:
    """Write ``version`` and the date into the files below ``root``. Raises CannotRelease, with nothing changed."""
    if not VERSION.fullmatch(version):
        raise CannotRelease(f"VERSION={version!r} is no version: three numbers are wanted, such as 1.2.3")
    if _git(root, "status", "--porcelain"):
        raise CannotRelease("there are uncommitted changes: commit or remove them first")
    if _git(root, "tag", "--list", f"v{version}"):
        raise CannotRelease(f"the tag v{version} exists already")
    before = VERSION.search((root / FILE).read_text())
    assert before is not None
    if _numbers(version) < _numbers(before[0]):
        raise CannotRelease(f"{version} is older than {before[0]}, the version in {FILE}")
    heading = f"## [{version}] - "
    changes = (root / CHANGES).read_text()
    if f"{heading}unreleased\n" not in changes:
        raise CannotRelease(f"{CHANGES} has no heading {heading + 'unreleased'!r}: write what has changed below it")
    (root / CHANGES).write_text(changes.replace(f"{heading}unreleased\n", f"{heading}{today}\n"))
    for path, old, new in ((FILE, f'"{before[0]}"', f'"{version}"'), (MANIFEST, f":{before[0]}", f":{version}")):
        (root / path).write_text((root / path).read_text().replace(old, new))


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")))


def _git(root: Path, *words: str) -> str:
    return subprocess.run(["git", *words], cwd=root, check=True, capture_output=True, text=True).stdout


def main() -> None:
    try:
        set_version(Path(), sys.argv[1] if len(sys.argv) == 2 else "", datetime.datetime.now(tz=datetime.UTC).date())
    except CannotRelease as error:
        sys.exit(f"release: {error}")


if __name__ == "__main__":
    main()
