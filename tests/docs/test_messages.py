"""The messages that pages quote have the words of the code."""

from __future__ import annotations

import re

import pytest

from ktaskfs.systemd import FIELDS
from tests.support.daemon import ROOT
from tests.support.documents import PAGES
from tests.support.messages import Messages, literal_words
from tests.support.quotes import FOREIGN, Quote, is_message, output, quotes

SOURCES = [
    path.read_text() for folder in ("ktaskfs", "packaging", "ansible/plugins") for path in (ROOT / folder).rglob("*.py")
]
MESSAGES = Messages(SOURCES)
QUOTES = sorted({quote.text: quote for quote in quotes()}.values(), key=lambda quote: (quote.page, quote.text))


def strange(text: str, messages: Messages = MESSAGES) -> set[str]:
    """The parts of a quote that neither ktaskfs nor a known other program prints."""
    return set(messages.unknown(text)) - FOREIGN


@pytest.mark.parametrize("quote", QUOTES, ids=lambda quote: f"{quote.page}-{quote.text[:40]}")
def test_the_code_has_the_words_of_a_quote(quote: Quote) -> None:
    assert strange(quote.text) == set(), "quote the words of the code, or name the program in tests/support/quotes.py"


@pytest.mark.parametrize("quote", QUOTES, ids=lambda quote: f"{quote.page}-{quote.text[:40]}")
def test_a_change_of_any_word_is_found(quote: Quote) -> None:
    parts = re.split(r"[:;] |…|\.\.\.", quote.text)
    for part in (part for part in parts if len(literal_words(part)) > 1 and part not in FOREIGN):
        for word in literal_words(part):
            changed = re.sub(rf"(?<![^ (,]){word}(?![^ ),.])", "sundry", part)
            assert strange(quote.text.replace(part, changed)), changed


def test_a_change_in_the_code_is_found() -> None:
    said = "/dev/hugepages/vm0: 4096 huge pages of 2M are needed, minus those it has"
    assert strange(said) == set()
    assert strange(said, Messages(source.replace("are needed, minus", "are wanted, minus") for source in SOURCES))


def test_quotes_are_recognised() -> None:
    pages = {quote.page for quote in QUOTES}
    assert {"docs/how-to/boot.md", "docs/how-to/slurm.md", "docs/abi/tasks"} <= pages
    assert len([quote for quote in QUOTES if quote.page == "docs/how-to/troubleshooting.md"]) >= 10
    assert len([quote for quote in QUOTES if quote.page == "docs/how-to/monitoring.md"]) >= 4


def test_pages_and_rules_name_every_field_of_the_journal_and_no_other() -> None:
    texts = [path.read_text() for path in (*PAGES, *(ROOT / "docs/monitoring").iterdir(), *ROOT.glob("docs/man/*.in"))]
    named = {word for text in texts for word in re.findall(r"\bKTASK_[A-Z]+", text)}
    assert named == {field for field in FIELDS if field.startswith("KTASK_")}


@pytest.mark.parametrize("name", sorted(path.name for path in (ROOT / "docs/monitoring").glob("*.*")))
def test_rules_and_panels_name_files_of_the_mount(name: str) -> None:
    """The files that a description sends its reader to, as docs/abi names them."""
    known = re.findall(r"^What:\s+(\S+)", "\n".join(path.read_text() for path in ROOT.glob("docs/abi/[a-z]*")), re.M)
    for file in re.findall(r"\b(?:tasks/NAME|info|debug)/\w+", (ROOT / "docs/monitoring" / name).read_text()):
        assert file.replace("NAME", "<task>") in known, file


def test_each_message_of_another_program_is_quoted() -> None:
    assert {part for quote in QUOTES for part in MESSAGES.unknown(quote.text)} == FOREIGN


def test_a_block_is_divided_into_what_is_typed_and_what_is_shown() -> None:
    assert output("# cat x\na: no such thing\n$ b: c \\\n   d: e\nf: g\n") == ["a: no such thing", "f: g"]
    assert output("node3 ktaskfs: no\n") == []
    assert output("ktaskfs: no\nktaskfs: yes\nname  state\n") == ["ktaskfs: no", "ktaskfs: yes"]
    assert output("[Unit]\nAfter=x.service; no\n") == []


def test_sentences_are_told_from_commands_and_values() -> None:
    assert all(map(is_message, ("no runtime directory", "write error: File exists", "failed to open /dev/fuse")))
    assert not any(map(is_message, ("ktaskfs ls", "rate_max=4G name=x", "kept BYTES", "tasks/control", "a | b")))
