"""Builds the site of the documents: ``python docs/site.py`` writes build/site; ends with an error for a dead link.

The pages keep the places that they have in the clone, so that their links hold in both. A page that is in no section
below is an error, too: nobody would find it.
"""

from __future__ import annotations

import logging
import shutil
import sys
from pathlib import Path
from typing import Any, Final

from mkdocs.commands.build import build
from mkdocs.config import load_config

ROOT: Final = Path(__file__).resolve().parents[1]
SOURCE: Final = "build/site-source"
SECTIONS: Final = {
    "Home": ("README.md", "CHANGELOG.md", "ansible/CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md"),
    "Tutorial": ("docs/tutorial/*.md",),
    "How to": ("docs/how-to/README.md", "docs/how-to/*.md", "ansible/README.md", "ansible/roles/*/README.md"),
    "Reference": ("docs/reference/README.md", "docs/reference/*.md", "docs/reference/operations/*.md", "docs/abi/*.md"),
    "Explanation": (
        "docs/explanation/README.md",
        "ARCHITECTURE.md",
        "docs/explanation/*.md",
        "bench/RESULTS.md",
        "bench/results/*.md",
    ),
}
"""The sections, and which pages they have, in this order."""
BESIDE: Final = ("docs/pictures/*.svg", "docs/plots/*.svg", "docs/how-to/*.yaml", "docs/abi/*", "LICENSE")
"""What pages show and lead to."""
BESIDE_TREES: Final = ("docs/monitoring",)


def stage() -> list[dict[str, list[str]]]:
    """Copy all pages to where mkdocs reads them; returns the navigation."""
    target = ROOT / SOURCE
    shutil.rmtree(target, ignore_errors=True)
    navigation = []
    for section, patterns in SECTIONS.items():
        pages = dict.fromkeys(path for pattern in patterns for path in sorted(ROOT.glob(pattern)))
        navigation.append({section: [str(path.relative_to(ROOT)) for path in pages]})
        for path in pages:
            _copy(path, target)
    for pattern in BESIDE:
        for path in ROOT.glob(pattern):
            if path.suffix != ".md":
                _copy(path, target)
    for tree in BESIDE_TREES:
        for path in (ROOT / tree).rglob("*"):
            if path.is_file():
                _copy(path, target)
    return navigation


def _copy(path: Path, target: Path) -> None:
    place = target / path.relative_to(ROOT)
    place.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(path, place)


def main(site: str | None) -> None:
    """Build the site at its place, or at ``site``. Raises Abort for a warning, which is logged."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    options: dict[str, Any] = {"nav": stage()} | ({} if site is None else {"site_dir": site})
    build(load_config(str(ROOT / "mkdocs.yml"), **options))


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else None)
