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

    def decode(self, ids: Any) -> str:
        """Return the text of a completion's tokens, without special tokens, as a scorer reads it."""
        # by default, published Llama 3 tokenizers change "x !" to "x!" in transformers 4.56 to 5.3
        return str(
            self.tokenizer.decode(
                [int(i) for i in ids], skip_special_tokens=True, clean_up_tokenization_spaces=False
            )
        )
