"""Control tokens of the model in the texts of rows: refused, or encoded as plain text.

For plain text, a row's control tokens become marks, single characters, before the chat template sees them:
its own control tokens can then be distinguished from them. A copy of the tokenizer, whose control tokens all
begin with one more character, encodes the rendered text. The template's own ones get that character, and the
marks become the row's texts again, which the copy reads like any other text.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import re
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Int32

from sdft_jax.errors import SdftError

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase

_PREFIX = "\U0010fffd"
"""The character before the control tokens of the copy: the last one for private use."""


@dataclasses.dataclass(frozen=True, eq=False)
class ControlTokens:
    """The control tokens of a tokenizer, as `data.control_tokens` treats them in the texts of rows."""

    tokenizer: PreTrainedTokenizerBase
    as_text: bool
    """Encode them as plain text, instead of refusing the row."""

    @functools.cached_property
    def ids(self) -> Mapping[str, int]:
        """The texts that the tokenizer turns into a control token, and the ids of these."""
        added = self.tokenizer.added_tokens_decoder.items()
        return {str(token): number for number, token in added if token.special and str(token)}

    @functools.cached_property
    def pattern(self) -> re.Pattern[str]:
        """A pattern of these texts."""
        return _any_of(self.ids)

    @functools.cached_property
    def marks(self) -> Mapping[str, str]:
        """Control token -> the character for private use that stands for it in a row."""
        return {token: chr(ord(_PREFIX) - 1 - number) for number, token in enumerate(self.ids)}

    def admit(self, value: Any, place: str) -> Any:
        """Return a text of a row, or the texts in nested lists and mappings, with marks for control tokens.

        Raises:
            SdftError: a text contains a control token, and these are refused, or a character that the marks
                use; the message begins with `place`.
        """

        def admit_text(text: str) -> str:
            if not self.as_text and (match := self.pattern.search(text)):
                raise SdftError(
                    f"{place} contains {match[0]!r}, which is a control token of the model, such as an "
                    "end-of-turn token: remove it, or set data.control_tokens=text."
                )
            if self.as_text and (match := self._reserved.search(text)):
                raise SdftError(
                    f"{place} contains the private character U+{ord(match[0]):X}, which "
                    "data.control_tokens=text uses: remove it."
                )
            return self.pattern.sub(lambda match: self.marks[match[0]], text) if self.as_text else text

        try:
            return _map_texts(admit_text, value)
        except RecursionError:
            raise SdftError(f"{place} is nested too deeply: remove levels of it.") from None

    def encode(self, text: str, place: str) -> Int32[np.ndarray, " T"] | None:
        """Return the tokens of a rendered text in which marks stand for plain text; None without marks.

        Raises:
            SdftError: the tokenizer's model makes control tokens of plain text itself.
        """
        if not self.as_text or not self._mark_pattern.search(text):
            return None
        own = len(self.pattern.findall(text))
        text = self.pattern.sub(lambda match: _PREFIX + match[0], text)
        text = self._mark_pattern.sub(lambda match: self._marked[match[0]], text)
        core, original = self._copy
        ids = np.asarray(core.encode(text, add_special_tokens=False).ids, np.int32)
        tokens = np.asarray([original.get(number, number) for number in ids.tolist()], np.int32)
        control = np.isin(tokens, [x for x in self.ids.values() if x != self.tokenizer.unk_token_id])
        if control.sum() > own:
            raise SdftError(
                f"{place}: the tokenizer makes control tokens of this row's text in any case: set "
                "data.control_tokens=refuse, and remove them from the row."
            )
        return tokens

    @functools.cached_property
    def _marked(self) -> Mapping[str, str]:
        """Mark -> control token."""
        return {mark: token for token, mark in self.marks.items()}

    @functools.cached_property
    def _mark_pattern(self) -> re.Pattern[str]:
        return _any_of(self._marked)

    @functools.cached_property
    def _reserved(self) -> re.Pattern[str]:
        return _any_of([_PREFIX, *self._marked])

    @functools.cached_property
    def _copy(self) -> tuple[Tokenizer, Mapping[int, int]]:
        """The copy of the tokenizer, and the ids of its added tokens in the tokenizer itself."""
        from tokenizers import Tokenizer

        state = json.loads(self.tokenizer.backend_tokenizer.to_str())
        for token in state["added_tokens"]:
            token["content"] = _PREFIX * token["special"] + token["content"]
        copy = Tokenizer.from_str(
            json.dumps(state | {"post_processor": None, "truncation": None, "padding": None})
        )
        ids = {token["id"]: copy.token_to_id(token["content"]) for token in state["added_tokens"]}
        return copy, {number: original for original, number in ids.items() if number is not None}


def _any_of(texts: Iterable[str]) -> re.Pattern[str]:
    """Return a pattern of these texts, the longest first; without texts, one that is nowhere."""
    longest_first = sorted(texts, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")


def _map_texts(change: Callable[[str], str], value: Any) -> Any:
    """Return a value with `change` applied to each text in it, in nested lists and mappings, also to keys."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {_map_texts(change, key): _map_texts(change, item) for key, item in value.items()}
    return [_map_texts(change, item) for item in value] if isinstance(value, list | tuple) else value
