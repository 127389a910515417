"""What a world gives to `make_base`: its words, the conversations that its base model is trained on, an exam.

A world is a module of this package (`world`, `storms`, `chains`) with a function `curriculum()`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from string import Template
from typing import NamedTuple

import numpy as np

from sdft_jax.data.encoding import REFERENCE_TEMPLATE


class Text(NamedTuple):
    """One training conversation."""

    user: str | None
    """The user's turn; None: raw text without the chat template, after the EOS token alone."""
    response: str
    """What follows; the encoder appends EOS."""
    unlearned: tuple[int, ...] = ()
    """Indices of response tokens that carry no loss nor count in an exam; EOS is the last."""


@dataclass(frozen=True)
class Kind:
    """One kind of conversation: a fixed padded shape."""

    rows: int
    """Rows of it in a step."""
    prompt: int
    """Most prompt tokens, chat template included."""
    response: int
    """Most response tokens, EOS included."""


@dataclass(frozen=True)
class Curriculum:
    """What a base model is trained on."""

    name: str
    words: tuple[str, ...]
    """The vocabulary, one token a word, beyond the chat template's, thoughts' and teacher's own tokens."""
    kinds: Mapping[str, Kind]
    draw: Callable[[str, np.random.Generator], Text]
    """(kind, generator) -> a fresh text of that kind."""
    examine: Callable[[], Mapping[str, Sequence[Text]]]
    """Name -> held-out texts with the response that is expected of a greedy model."""


def teacher_turn(question: str, demonstration: str) -> str:
    """What the user says to a teacher, as the paper's template has it."""
    return Template(REFERENCE_TEMPLATE).substitute(question=question, demonstration=demonstration)
