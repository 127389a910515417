"""YAML files and `key=value` arguments as nested dictionaries."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from etils import epath

from sdft_jax.errors import SdftError


class _Loader(yaml.SafeLoader):
    """YAML without base-60 numbers, which would read 10:13 as 613."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith((":int", ":float"))]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_DIGITS = list("-+0123456789.")
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"^[-+]?(?:[0-9][0-9_]*\.[0-9_]*(?:[eE][-+]?[0-9]+)?|\.[0-9][0-9_]*(?:[eE][-+]?[0-9]+)?"
        r"|[0-9]+[eE][-+]?[0-9]+|\.(?:inf|Inf|INF))$|^\.(?:nan|NaN|NAN)$"
    ),
    _DIGITS,
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:int",
    re.compile(r"^[-+]?(?:0b[0-1_]+|0[0-7_]+|(?:0|[1-9][0-9_]*)|0x[0-9a-fA-F_]+)$"),
    _DIGITS,
)


def _parse(text: str) -> Any:
    return yaml.load(text, _Loader)


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Return the keys and values of a file, which may be in a bucket.

    Raises:
        SdftError: the file is missing or malformed.
    """
    file = epath.Path(path)
    if not file.is_file():
        raise SdftError(f"config {path} does not exist: give a YAML file, such as configs/quickstart.yaml.")
    try:
        tree = _parse(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SdftError(
            f"config {path} is not valid YAML ({' '.join(str(error).split())}): fix the file."
        ) from None
    if tree is not None and not isinstance(tree, dict):
        raise SdftError(
            f"config {path} holds a {type(tree).__name__}: write keys and values at its top level."
        )
    return tree or {}


def parse_override(text: str) -> dict[str, Any]:
    """Return `a.b=1` as {"a": {"b": 1}}; the value is parsed as YAML."""
    key, separator, value = text.partition("=")
    if not separator or not key:
        raise SdftError(f"override {text!r} is not key=value: write it like train.batch_size=16.")
    try:
        tree: Any = _parse(value) if value else ""
    except yaml.YAMLError:
        tree = value
    for part in reversed(key.split(".")):
        tree = {part: tree}
    return tree


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return {"a": {"b": 1}} as {"a.b": 1}; an empty mapping is a value."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        flat |= flatten(value, name + ".") if isinstance(value, Mapping) and value else {name: value}
    return flat


def merge(base: Mapping[str, Any], top: Mapping[str, Any]) -> dict[str, Any]:
    """Return `base` updated with the keys of `top` at every depth."""
    merged = dict(base)
    for key, value in top.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = merge(merged[key], value) if both else value
    return merged
