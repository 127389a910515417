"""A lower bound of a text's number of tokens, from its length.

A tokenizer takes some hundred bytes of memory per character. A text that is far over a limit need not be
tokenized to drop it, but the bound must hold for every text: a row that fits is never dropped.
"""

from __future__ import annotations

import dataclasses
import json
import unicodedata
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LONG = 1 << 18
"""Number of characters up to which a text is tokenized in any case."""

_COMPOSED = 4
"""Maximum number of characters that Unicode normalization makes one character of: no character has a longer
canonical decomposition, and a decomposition never shortens a text."""

_UNICODE = {"NFC", "NFD", "NFKC", "NFKD"}
"""Normalizers that neither delete characters nor make whitespace of others, or others of whitespace."""
_KEEPING = {"ByteLevel", "Digits", "Metaspace", "Punctuation", "Split"}
"""Pre-tokenizers that keep every character, if their behavior is not Removed."""
_SPLITTING = {"BertPreTokenizer", "Whitespace", "WhitespaceSplit"}
"""Pre-tokenizers that split a text at its whitespace, and remove nothing else."""


@dataclasses.dataclass(frozen=True)
class TokenBound:
    """The most text that one token of a tokenizer stands for."""

    per_token: int
    """Maximum number of characters, or of words, that one token stands for."""
    words: bool
    """Count words instead of characters: an unknown word of any length is one token."""
    whitespace: bool
    """Count whitespace. False if a control token takes the whitespace beside it, or for words."""

    def at_least(self, text: str, limit: int, trimmed: bool) -> int:
        """Return a number of tokens that `text` has at least; beyond `limit` it may be lower than possible.

        Args:
            text: the text.
            limit: the number of tokens that is compared with.
            trimmed: True if the text may lose whitespace before it is tokenized, as in a chat template.
        """
        if self.whitespace and not trimmed:
            return -(-len(text) // self.per_token)
        count = 0
        for words in _words(text):
            count += max(0, len(words) - 1) if self.words else sum(map(len, words))
            if count > limit * self.per_token:
                break
        return -(-count // self.per_token)


def _words(text: str) -> Iterator[list[str]]:
    """Yield the words of one part of the text after the other; a part may begin and end within a word."""
    for start in range(0, len(text), LONG):
        yield text[start : start + LONG].split()


def token_bound(tokenizer: PreTrainedTokenizerBase) -> TokenBound | None:
    """Return the bound of a tokenizer; None if a token may stand for any amount of text.

    It is known for BPE whose vocabulary has a token for every byte, as published models have it, and for
    vocabularies of words. Other models may turn any number of unknown characters into one token or none, and
    other normalizers may delete text.
    """
    core = getattr(tokenizer, "backend_tokenizer", None)
    if core is None:
        return None
    state = json.loads(core.to_str())
    normalizers = [*_components(state["normalizer"], "normalizers")]
    splits = [*_components(state["pre_tokenizer"], "pretokenizers")]
    kinds = {split["type"] for split in splits}
    if any(split.get("behavior") == "Removed" for split in splits):
        return None
    tokens, model = tokenizer.get_vocab(), state["model"]["type"]
    if model in ("WordLevel", "WordPiece") and kinds & _SPLITTING and kinds <= _SPLITTING | _KEEPING:
        unchanged = all(part["type"] in _UNICODE for part in normalizers)
        most = max(1, *(len(token.split()) for token in tokens))
        return TokenBound(most, words=True, whitespace=False) if unchanged else None
    factor = _shrinking(normalizers)
    if model != "BPE" or factor is None or not kinds <= _KEEPING or not _has_all_bytes(state):
        return None
    # a token that is matched in the normalized text may be longer there
    longest = max(len(unicodedata.normalize("NFKD", token)) for token in tokens)
    takes_whitespace = any(token["lstrip"] or token["rstrip"] for token in state["added_tokens"])
    return TokenBound(longest * factor, words=False, whitespace=not takes_whitespace)


def _components(part: Mapping[str, Any] | None, name: str) -> Iterator[Mapping[str, Any]]:
    """Yield a normalizer or pre-tokenizer of tokenizer.json, or those of a sequence."""
    if part is not None and part["type"] == "Sequence":
        for inner in part[name]:
            yield from _components(inner, name)
    elif part is not None:
        yield part


def _shrinking(normalizers: list[Mapping[str, Any]]) -> int | None:
    """Return the maximum factor by which normalizers shorten a text; None if it is not known."""
    factor = 1
    for part in normalizers:
        if part["type"] in _UNICODE:
            factor *= _COMPOSED
        elif part["type"] == "Replace" and part["pattern"].get("String") and part["content"].strip():
            factor *= -(-len(part["pattern"]["String"]) // len(part["content"]))
        elif part["type"] not in ("Prepend", "ByteLevel"):
            return None
    return factor


def _has_all_bytes(state: Mapping[str, Any]) -> bool:
    """Return True if a BPE model has a token for every byte, so that no character is unknown."""
    from tokenizers.pre_tokenizers import ByteLevel

    vocabulary = state["model"]["vocab"]
    splits = _components(state["pre_tokenizer"], "pretokenizers")
    if any(part["type"] == "ByteLevel" for part in splits):
        return all(symbol in vocabulary for symbol in ByteLevel.alphabet())
    return bool(state["model"].get("byte_fallback")) and all(
        f"<0x{byte:02X}>" in vocabulary for byte in range(256)
    )
