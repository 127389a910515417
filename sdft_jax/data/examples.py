"""The rows of a source as `Example`s."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    pass


Message = Mapping[str, Any]
"""One chat turn: {"role": ..., "content": ...}."""


@dataclasses.dataclass(frozen=True)
class Example:
    """One row of a source: what is asked, how an expert answers, what is scored."""

    prompt: tuple[Message, ...] | str
    """Chat messages that end with the user's, or the text of a single user turn."""
    demonstration: str
    """What is imitated: of method cpt the raw text; empty where it is not needed."""
    answer: Any
    """What the task scores against, as it stands in the row; None without one."""
    row: int
    """Index in the source, from 0."""
    source: str
    context: str | None = None
    """What the teacher is shown; None: the demonstration."""
    skill: str | None = None
    """Name of the skill that the row tests, from its field `skill`; None without one."""

    @property
    def where(self) -> str:
        """File and row, for messages."""
        return where(self.source, self.row)


def where(source: str, row: int) -> str:
    """Names a row as its reader would find it: the line of a JSONL file, else the row counted from 0."""
    return f"{source}, line {row + 1}" if source.endswith((".jsonl", ".json")) else f"{source}, row {row}"
