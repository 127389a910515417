"""Trainable and frozen parameters as two trees."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sdft_jax.errors import SdftError
from sdft_jax.types import Params


def split(params: Params, freeze: Sequence[str] = ()) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return (trainable, frozen) parameters.

    A parameter is frozen if a pattern is found in its path, such as `layers/q`.

    Raises:
        SdftError: a pattern is not a regular expression or matches nothing, or no parameter is left to train.
    """
    paths = list(_paths(params))
    try:
        patterns = [re.compile(pattern) for pattern in freeze]
    except re.error as error:
        raise SdftError(
            f"optimizer.freeze={list(freeze)} is not a list of regular expressions ({error}): fix the "
            "pattern."
        ) from None
    for pattern in patterns:
        if not any(pattern.search(path) for path in paths):
            raise SdftError(
                f"optimizer.freeze: {pattern.pattern!r} matches no parameter: use one of {', '.join(paths)}."
            )

    def is_frozen(path: str) -> bool:
        return any(pattern.search(path) for pattern in patterns)

    if all(map(is_frozen, paths)):
        raise SdftError(f"optimizer.freeze={list(freeze)} freezes every parameter: remove a pattern.")
    return _filter(params, lambda path: not is_frozen(path)), _filter(params, is_frozen)


def join(trainable: Params, frozen: Params) -> dict[str, Any]:
    """Return the whole tree, as the model reads it."""
    merged = dict(trainable)
    for key, value in frozen.items():
        nested = isinstance(value, Mapping)
        merged[key] = join(trainable.get(key, {}), value) if nested else value
    return merged


def select(tree: Mapping[str, Any], like: Mapping[str, Any]) -> dict[str, Any]:
    """Return the part of `tree` that has the keys of `like`."""
    return {
        key: select(tree[key], value) if isinstance(value, Mapping) else tree[key]
        for key, value in like.items()
    }


def _paths(tree: Mapping[str, Any], prefix: str = "") -> list[str]:
    paths: list[str] = []
    for key, value in tree.items():
        paths += _paths(value, f"{prefix}{key}/") if isinstance(value, Mapping) else [prefix + key]
    return paths


def _filter(tree: Mapping[str, Any], keep: Callable[[str], bool], prefix: str = "") -> dict[str, Any]:
    """Return the tree of the leaves whose path `keep` accepts, without empty branches."""
    filtered: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            if branch := _filter(value, keep, f"{prefix}{key}/"):
                filtered[key] = branch
        elif keep(prefix + key):
            filtered[key] = value
    return filtered
