"""A model with its parameters, tokenizer and stop tokens."""

from __future__ import annotations

import dataclasses
import functools
from typing import TYPE_CHECKING, Any

from sdft_jax.models.decoder import Model
from sdft_jax.models.hf.tokenizer import stop_tokens
from sdft_jax.types import Params, StopTokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


_THOUGHT_TOKENS = (
    ("<think>", "</think>"),
    ("[THINK]", "[/THINK]"),
    ("<|channel>", "<channel|>"),
    ("<|start|>", "<|channel|>", "<|message|>", "<|end|>"),
)
"""Control tokens of a model that mark its thoughts: of Mistral, Gemma 4, gpt-oss and others."""


@dataclasses.dataclass(frozen=True, eq=False)
class Speaker:
    """A model with the tokenizer and stop tokens that it needs to answer a text prompt."""

    model: Model
    params: Params
    tokenizer: PreTrainedTokenizerBase
    eos_ids: tuple[int, ...]
    """The tokens that end a completion."""

    @functools.cached_property
    def stop(self) -> StopTokens:
        """The stop tokens, the padding token and the number of ids that the tokenizer has."""
        return stop_tokens(self.tokenizer, self.eos_ids)

    @property
    def vocab_size(self) -> int:
        """The number of token ids that the model has."""
        return self.model.architecture.vocab_size

    def with_params(self, params: Params) -> Speaker:
        """Return the speaker with other parameters."""
        return dataclasses.replace(self, params=params)

    def decode(self, ids: Any, thoughts: bool = False) -> str:
        """Return the text of a completion's tokens, without special tokens.

        Args:
            ids: the tokens.
            thoughts: True to keep special tokens that mark thoughts, which a scorer then leaves out.
        """
        ids = [int(i) for i in ids]
        marks = self._thought_ids if thoughts else frozenset()
        marked = not marks.isdisjoint(ids)
        if marked:
            left_out = {*self._special_ids.values()} - marks
            ids = [i for i in ids if i not in left_out]
        # by default, published Llama 3 tokenizers change "x !" to "x!" in transformers 4.56 to 5.3
        return str(
            self.tokenizer.decode(ids, skip_special_tokens=not marked, clean_up_tokenization_spaces=False)
        )

    @functools.cached_property
    def _special_ids(self) -> dict[str, int]:
        added = self.tokenizer.added_tokens_decoder.items()
        return {str(token): i for i, token in added if token.special}

    @functools.cached_property
    def _thought_ids(self) -> frozenset[int]:
        special = {token: i for token, i in self._special_ids.items() if i not in self.eos_ids}
        groups = (group for group in _THOUGHT_TOKENS if special.keys() >= set(group))
        return frozenset(special[token] for group in groups for token in group)
