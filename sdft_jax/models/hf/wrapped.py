"""The names of a text model's tensors in the checkpoint of a multimodal model, its wrapper.

For example, `model.norm.weight` is `language_model.model.norm.weight` in most published files, and
`model.language_model.norm.weight` in others. The head is `language_model.lm_head.weight` or `lm_head.weight`.
"""

from __future__ import annotations

import re

_HEAD = re.compile(r"(?:language_model\.)?(lm_head\..+)")
_BODY = re.compile(r"(?:model\.language_model|language_model\.model|language_model)\.(.+)")
MODULE = "model.language_model."
"""The beginning of the names of modules in transformers, where a text model alone has `model.`."""


def plain_name(name: str) -> str | None:
    """Return the name outside a wrapper; None for a tensor that is not of the text model."""
    if found := _HEAD.fullmatch(name):
        return found[1]
    found = _BODY.fullmatch(name)
    return f"model.{found[1]}" if found else None


def module_name(plain: str) -> str:
    """Return the name in the wrapper's class of transformers."""
    return MODULE + plain.removeprefix("model.") if plain.startswith("model.") else plain


def wrapped_name(plain: str, norm: str) -> str:
    """Return the name in a file in which the final norm, `model.norm.weight` outside a wrapper, is `norm`."""
    prefix = norm.removesuffix("norm.weight")
    if plain.startswith("model."):
        return prefix + plain.removeprefix("model.")
    return f"language_model.{plain}" if prefix == "language_model.model." else plain
