"""Articles as passages: reading texts from files, and splitting long ones between their paragraphs."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from sdft_jax.data.examples import location
from sdft_jax.data.sources import read_rows
from sdft_jax.errors import SdftError
from sdft_jax.files import read_text
from sdft_jax.tasks.fields import text_of

TEXTS = (".txt", ".md")
"""Suffixes of files that hold one article each."""


@dataclasses.dataclass(frozen=True)
class Article:
    """A text with its title."""

    title: str
    text: str
    place: str
    """The file, or the source and the row."""


def read_articles(paths: Sequence[str]) -> list[Article]:
    """Return the articles of files, directories and data sets, in order.

    A .txt or .md file is one article; its title is the first heading of Markdown, or else the file's name. A
    directory stands for all such files in it, by name. Any other source of rows, as `data.path`, has the
    field `text` and, if there is one, `title`.

    Raises:
        SdftError: a source cannot be read, an article is empty, or two are the same text.
    """
    articles = [article for path in paths for article in _read(path)]
    seen: dict[str, str] = {}
    for article in articles:
        first = seen.setdefault(article.text, article.place)
        if first != article.place:
            raise SdftError(f"{article.place} has the same text as {first}: remove one of them.")
    return articles


def _read(path: str) -> Iterator[Article]:
    directory = Path(path)
    if directory.is_dir() and (files := sorted(x for x in directory.iterdir() if x.suffix in TEXTS)):
        for file in files:
            yield _read_file(str(file))
    elif path.endswith(TEXTS):
        yield _read_file(path)
    else:
        for index, row in enumerate(read_rows(path)):
            place = location(path, index)
            title = row.get("title") or f"{directory.stem} {index + 1}"
            if not isinstance(title, str):
                raise SdftError(f"{place}: field 'title' is not a text: give a text, or leave it out.")
            yield Article(title.strip(), text_of(row, "text", place).strip(), place)


def _read_file(path: str) -> Article:
    text = read_text(path, "give a text in UTF-8").strip()
    title = Path(path).stem.replace("_", " ")
    if path.endswith(".md") and (heading := re.match(r"#\s+(.+)", text)):
        title, text = heading[1].strip(), text[heading.end() :].strip()
    if not text:
        raise SdftError(f"{path} has no text: remove it, or give an article.")
    return Article(title, text, path)


def split_passages(text: str, words: int) -> list[str]:
    """Return the passages of a text, each of at most `words` words.

    A passage ends between two paragraphs; a paragraph that is too long is split between sentences, and a
    sentence that is too long between words. Passages have similar lengths, so that the last is not a rest.

    >>> split_passages("a b\\n\\nc d e\\n\\nf. g h", 3)
    ['a b', 'c d e', 'f. g h']
    """
    parts = [part for paragraph in re.split(r"\n\s*\n", text) for part in _within(paragraph.strip(), words)]
    total = sum(len(part.split()) for part in parts)
    target = total / -(-total // words) if total else 0
    passages: list[list[str]] = []
    size = 0
    for part in parts:
        length = len(part.split())
        if not passages or size >= target or size + length > words:
            passages.append([])
            size = 0
        passages[-1].append(part)
        size += length
    return ["\n\n".join(passage) for passage in passages]


def _within(paragraph: str, words: int) -> Iterator[str]:
    """Yield the parts of a paragraph, each of at most `words` words."""
    if len(paragraph.split()) <= words:
        if paragraph:
            yield paragraph
        return
    sentences = re.split(r"(?<=[.!?])\s+", paragraph)
    if len(sentences) == 1:
        pieces = paragraph.split()
        sentences = [" ".join(pieces[i : i + words]) for i in range(0, len(pieces), words)]
    line: list[str] = []
    for sentence in sentences:
        if line and len(" ".join([*line, sentence]).split()) > words:
            yield " ".join(line)
            line = []
        if len(sentence.split()) > words:
            yield from _within(sentence, words)
        else:
            line.append(sentence)
    if line:
        yield " ".join(line)
