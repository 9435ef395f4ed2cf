"""Makes the manual pages from docs/abi, the tables of docs/reference, and the .in files in this directory.

``python docs/man/generate.py DIRECTORY`` writes them there.
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

HERE: Final = Path(__file__).resolve().parent
ABI: Final = HERE.parent / "abi"
REFERENCE: Final = HERE.parent / "reference"
SECTIONS: Final = ("top", "debug", "operations", "info", "tasks")
GENERATED: Final = re.compile(r"<!-- from the declarations.*?-->(.*)<!-- written by hand", re.DOTALL)
CELL: Final = re.compile(r"(?<!\\)\|")
LINK: Final = re.compile(r"\[([^]]*)\]\([^)]*\)")
VERSION: Final = re.compile(r'VERSION\b.*"(.+)"')


@dataclass(frozen=True)
class Entry:
    """One entry of docs/abi: the paths, and the text of each field without its indentation."""

    what: tuple[str, ...]
    fields: dict[str, str]


def entries(section: str) -> list[Entry]:
    """The entries of a file of docs/abi, in its order; raises ValueError for a line of no known form."""
    found = []
    for block in re.split(r"\n(?=What:)", (ABI / section).read_text(encoding="utf-8").strip()):
        parts = re.split(r"^([A-Z][a-z]+):", block, flags=re.MULTILINE)[1:]
        fields = {name: _dedent(text) for name, text in zip(parts[::2], parts[1::2], strict=True)}
        if "What" not in fields:
            raise ValueError(f"docs/abi/{section}: no entry: {block[:80]!r}")
        found.append(Entry(tuple(fields.pop("What").split("\n")), fields))
    return found


def _dedent(text: str) -> str:
    return re.sub(r"^(\t\t| {16})", "", text.strip("\n"), flags=re.MULTILINE).strip("\n\t")


def roff(text: str) -> str:
    """Plain text as roff: paragraphs are filled, lines that are indented stay as they are."""
    out = []
    for paragraph in re.split(r"\n\s*\n", text):
        lines = [_escape(line) for line in paragraph.split("\n")]
        fixed = any(line[:1].isspace() or "\t" in line for line in paragraph.split("\n"))
        out += ["", ".EX", *lines, ".EE"] if fixed else [".PP", *lines]
    return "\n".join(out).strip()


def _escape(line: str) -> str:
    line = line.replace("\\", "\\e").replace("-", "\\-").replace("`", "").replace("'", "\\(aq").expandtabs(8)
    return f"\\&{line}" if line[:1] in (".", "'") else line


def _files() -> str:
    out = []
    for section in SECTIONS:
        for entry in entries(section):
            out.append(f'.SS "{_escape(", ".join(entry.what))}"')
            out.append(f"Mode {_escape(entry.fields['Mode'])}; since {_escape(entry.fields['Since'])}.")
            out.append(roff(entry.fields["Description"]))
            out.append(".PP\n.I Format:")
            out.append(re.sub(r"\A\.PP\n", "", roff(entry.fields["Format"])))
    return "\n".join(out)


def _tunables() -> str:
    out = []
    for entry in entries("debug"):
        name = entry.what[0].removeprefix("debug/ktask_")
        out.append(f".TP\n.B {name}")
        out.append(roff(entry.fields["Description"] + "\n" + entry.fields["Format"]).removeprefix(".PP\n"))
    return "\n".join(out)


def _operations() -> str:
    """The parameters of each operation, for each kind of target, from docs/reference."""
    parts = [_markdown(_generated(page)) for page in sorted((REFERENCE / "operations").glob("*.md"))]
    common = _generated(REFERENCE / "README.md").partition("## Parameters of every operation\n")[2]
    return "\n".join([*parts, '.SS "Parameters of every operation"', _markdown(common)])


def _generated(page: Path) -> str:
    match = GENERATED.search(page.read_text(encoding="utf-8"))
    if match is None:
        raise ValueError(f"{page}: no generated part")
    return match[1]


def _markdown(text: str) -> str:
    """Headings, paragraphs and tables of parameters as roff."""
    out = []
    for block in re.split(r"\n\s*\n", text.strip()):
        heading = re.fullmatch(r"#+ (.*)", block)
        if heading is not None:
            name = _escape(heading[1])
            out.append(f'.SS "{name}"' if block.startswith("# ") else f".PP\n.B {name}")
        elif block.startswith("|"):
            rows = [[cell.strip().replace("\\|", "|") for cell in CELL.split(row)[1:-1]] for row in block.split("\n")]
            for name, kind, default, meaning in rows[2:]:
                of = kind if default == "`-`" else f"{kind}; {default}"
                out.append(f'.TP\n.BR {_escape(name)} " ({_escape(of)})"\n{_escape(meaning)}')
        else:
            plain = LINK.sub(r"\1", block)
            out.append(f".PP\n{_escape(plain)}")
    return "\n".join(out)


def _version() -> str:
    match = VERSION.search((HERE.parents[1] / "ktaskfs/version.py").read_text(encoding="utf-8"))
    if match is None:
        raise ValueError("ktaskfs/version.py: no version")
    return match[1]


def pages() -> dict[str, str]:
    """The text of each page by its file name."""
    texts = {"@FILES@": _files(), "@OPERATIONS@": _operations(), "@TUNABLES@": _tunables(), "@VERSION@": _version()}
    made = {}
    for source in sorted(HERE.glob("*.in")):
        text = source.read_text(encoding="utf-8")
        for mark, part in texts.items():
            text = text.replace(mark, part)
        made[source.stem] = text
    return made


if __name__ == "__main__":
    for file_name, page in pages().items():
        Path(sys.argv[1], file_name).write_text(page, encoding="utf-8")
