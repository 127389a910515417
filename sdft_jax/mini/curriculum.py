"""The interface between a world and `make_base`: a vocabulary, a source of training texts and an exam.

A world is a module of this package (`lists`, `storms` or `chains`) with a function `curriculum()`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from string import Template
from typing import NamedTuple

import numpy as np

from sdft_jax.data.encoding import REFERENCE_TEMPLATE


class Text(NamedTuple):
    """One training text: a user turn and its response, or raw text."""

    user: str | None
    """The user turn. None stands for raw text: no chat template, and the EOS token as the only prompt."""
    response: str
    """The text after the prompt; `make_base.encode` appends EOS."""
    masked: tuple[int, ...] = ()
    """Indices of the response tokens that are excluded from the loss and the exam; EOS is the last token."""


@dataclass(frozen=True)
class Kind:
    """A kind of training text, padded to a fixed shape."""

    rows: int
    """The number of texts of this kind in a training step."""
    prompt: int
    """The maximum number of prompt tokens, including the chat template."""
    response: int
    """The maximum number of response tokens, including EOS."""


@dataclass(frozen=True)
class Curriculum:
    """The training data and the exam of a base model."""

    name: str
    words: tuple[str, ...]
    """The words of the world, one token each; `tokenizer.vocabulary` adds the tokens of the templates."""
    kinds: Mapping[str, Kind]
    """Name -> kind of training text."""
    draw: Callable[[str, np.random.Generator], Text]
    """(name of a kind, generator) -> a new random text of that kind."""
    examine: Callable[[], Mapping[str, Sequence[Text]]]
    """A function that returns name -> held-out texts with the expected greedy response."""


def teacher_turn(question: str, demonstration: str) -> str:
    """Return the user turn of the teacher's prompt, in the template of the paper."""
    return Template(REFERENCE_TEMPLATE).substitute(question=question, demonstration=demonstration)
