"""`Example`, one row of a data source, or one assistant turn of a row that is a trace."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

Message = Mapping[str, Any]
"""One chat turn: {"role": ..., "content": ...}."""


@dataclasses.dataclass(frozen=True)
class Example:
    """A prompt, its demonstration and the reference answer, from one row of a source."""

    prompt: tuple[Message, ...] | str
    """Chat messages that end with a user message or a tool's result, or the text of a single user turn."""
    demonstration: str | Message
    """The demonstration's text, or the assistant turn of a trace; for method cpt the raw text; empty if it is
    not needed."""
    answer: Any
    """The reference answer for scoring, unchanged from the row; None if the row has none."""
    row: int
    """Index in the source, from 0."""
    source: str
    """The file or dataset that the row was read from."""
    context: str | None = None
    """The text in the teacher's prompt; None for the demonstration."""
    skill: str | None = None
    """Name of the skill that the row tests, from its field `skill`; None if the row has none."""
    others: tuple[str, ...] = ()
    """The row's further demonstrations: one of all is drawn in each epoch."""
    tools: tuple[Mapping[str, Any], ...] = ()
    """The JSON schemas of the tools that the chat template describes in the prompt."""
    turn: int | None = None
    """Index of the demonstrated turn among the messages of a trace, from 0; None if the row is no trace."""

    @property
    def id(self) -> tuple[int, int | None]:
        """The row and the turn, which no other example of the source has."""
        return self.row, self.turn

    @property
    def location(self) -> str:
        """The source, the row and the turn of a trace, for error messages."""
        place = location(self.source, self.row)
        return place if self.turn is None else f"{place}, message {self.turn}"


def location(source: str, row: int) -> str:
    """Return the source and the row for error messages: the line (from 1) in JSONL, else the row (from 0)."""
    plain = source.removesuffix(".gz").removesuffix(".zst")
    return f"{source}, line {row + 1}" if plain.endswith((".jsonl", ".json")) else f"{source}, row {row}"
