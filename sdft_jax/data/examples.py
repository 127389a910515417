"""`Example`, one row of a data source."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

Message = Mapping[str, Any]
"""One chat turn: {"role": ..., "content": ...}."""


@dataclasses.dataclass(frozen=True)
class Example:
    """One row of a source: the prompt, the demonstration and the reference answer."""

    prompt: tuple[Message, ...] | str
    """Chat messages that end with a user message, or the text of a single user turn."""
    demonstration: str
    """The demonstration's text; for method cpt the raw text; empty if it is not needed."""
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

    @property
    def location(self) -> str:
        """The source and the row, for error messages."""
        return location(self.source, self.row)


def location(source: str, row: int) -> str:
    """Return the source and the row for error messages: the line (from 1) in JSONL, else the row (from 0)."""
    return f"{source}, line {row + 1}" if source.endswith((".jsonl", ".json")) else f"{source}, row {row}"
