"""Rows of task knowledge that `sdft prepare knowledge` has written, as the raw rows of a TFDS builder."""

from __future__ import annotations

from sdft_jax.tasks.fields import Raw, Row, messages_of, text_of

TEXTS = ("context", "answer", "skill", "article")
"""The fields of every row, beside its prompt."""


def convert(raw: Raw, place: str) -> Row:
    """Return a prepared row, with its fields verified; rows that only test have no demonstration."""
    taught = {}
    if raw.get("demonstration") is not None:
        taught["demonstration"] = text_of(raw, "demonstration", place)
    texts = {name: text_of(raw, name, place) for name in TEXTS}
    return {"prompt": messages_of(raw, "prompt", place)} | taught | texts
