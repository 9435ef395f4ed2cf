"""Makes the manual pages from docs/abi, docs/reference, and the .in files in this directory.

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
REMARK: Final = re.compile(r"<!--.*?-->", re.DOTALL)
SAID_ONCE: Final = re.compile(
    r"\s*(It also takes the \[parameters|See also\s+\[errors)\s+of\s+every\s+operation\]\([^)]*\)\."
)
"""Of each operation; the page says it in the beginning."""
UNBROKEN: Final = re.compile(r"\S*(?:_|[A-Z]{3}|\x02|\x03)\S*")
"""Words that no hyphen may break: code, which these two characters enclose, and names of errors."""
CODE: Final = re.compile(r"`([^`]+)`")
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
    """The parameters, the results and the refusals of each operation, for each kind of target, from docs/reference."""
    texts = [page.read_text(encoding="utf-8") for page in sorted((REFERENCE / "operations").glob("*.md"))]
    return "\n".join(_markdown(SAID_ONCE.sub("", text), top=".SS", below=".PP\n.B") for text in texts)


def _specs() -> str:
    """What a spec is, from the page of all operations."""
    return _markdown(_sections()["Operations"])


def _every_operation() -> str:
    """What all operations have in common, from the same page: all sections after that of the operations."""
    common = (f"## {heading}\n{text}" for heading, text in _sections().items() if heading != "Operations")
    return "\n".join(_markdown(text, below=".SH") for text in common)


def _sections() -> dict[str, str]:
    text = (REFERENCE / "README.md").read_text(encoding="utf-8")
    text = re.sub(r"^\| operation \|.*?\n\n", "", text, flags=re.MULTILINE | re.DOTALL)  # the pages' own table
    parts = re.split(r"^## (.*)$", text, flags=re.MULTILINE)[1:]
    return dict(zip(parts[::2], parts[1::2], strict=True))


def _markdown(text: str, *, top: str = ".SH", below: str = ".SS") -> str:
    """Headings, paragraphs, examples and tables as roff; the two macros are those of headings."""
    out = []
    for block in re.split(r"\n\s*\n", REMARK.sub("", text).strip()):
        heading = re.fullmatch(r"(#+) (.*)", block)
        if heading is not None:
            macro, name = (top if heading[1] == "#" else below), _escape(heading[2])
            out.append(f'{macro} "{name.upper() if macro == ".SH" else name}"')
        elif block.startswith("|"):
            rows = [[cell.strip().replace("\\|", "|") for cell in CELL.split(row)[1:-1]] for row in block.split("\n")]
            out += [_row(*cells) for cells in rows[2:]]
        elif block.startswith("    "):
            out += [".PP", roff(block)]
        else:
            out += [".PP", *(_inline(line) for line in LINK.sub(r"\1", block).split("\n"))]
    return "\n".join(out)


def _row(name: str, *cells: str) -> str:
    """A row of parameters (name, type, default, meaning), or of names and meanings, as an entry of a list."""
    if len(cells) == 1:
        return f".TP\n.B {_escape(name)}\n{_inline(cells[0])}"
    kind, default, meaning = cells
    of = kind if default == "`-`" else f"{kind}; {default}"
    return f'.TP\n.BR {_escape(name)} " ({_escape(of)})"\n{_inline(meaning)}'


def _inline(line: str) -> str:
    """A line of a paragraph: what Markdown shows as code is bold."""
    marked = UNBROKEN.sub(r"\\%\g<0>", _escape(CODE.sub("\x02\\1\x03", line)))
    return marked.replace("\x02", "\\fB").replace("\x03", "\\fR")


def _version() -> str:
    match = VERSION.search((HERE.parents[1] / "ktaskfs/version.py").read_text(encoding="utf-8"))
    if match is None:
        raise ValueError("ktaskfs/version.py: no version")
    return match[1]


def pages() -> dict[str, str]:
    """The text of each page by its file name."""
    texts = {"@FILES@": _files(), "@TUNABLES@": _tunables(), "@VERSION@": _version()}
    texts |= {"@SPECS@": _specs(), "@OPERATIONS@": _operations(), "@EVERY_OPERATION@": _every_operation()}
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
