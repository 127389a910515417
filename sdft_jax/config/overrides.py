"""YAML files and `key=value` arguments as nested dictionaries."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

from sdft_jax.errors import SdftError, reason
from sdft_jax.files import is_utf8, read_bytes


class _Loader(yaml.SafeLoader):
    """YAML without base-60 numbers, which would read 10:13 as 613, and with a bounded number of values."""

    read = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Return the next value."""
        self.read += 1
        if self.read > LARGEST:
            raise yaml.YAMLError(f"it has more than {LARGEST:,} values")
        return super().compose_node(parent, index)

    def construct_scalar(self, node: Any) -> Any:
        """Return the text of a value, in which two halves of a surrogate pair are one character."""
        text = super().construct_scalar(node)
        try:
            return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le")
        except UnicodeDecodeError:
            line = node.start_mark.line + 1
            raise yaml.YAMLError(f"line {line}: half of a surrogate pair is not a character") from None


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


LARGEST = 10_000
"""Maximum number of values in a YAML text, with those of aliases counted each time."""
LONGEST = 1 << 20
"""Maximum size of a YAML file, in bytes."""


def _parse(text: str) -> Any:
    """Return the value of a YAML text.

    Raises:
        yaml.YAMLError: the text is malformed, has a key twice, or aliases that refer to themselves or stand
            for more than `LARGEST` values.
    """
    loader = None
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _count(node, {}, ())
        return loader.construct_document(node)
    except RecursionError:
        raise yaml.YAMLError("it is nested too deeply") from None
    except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:  # 2024-99-99, !!int ""
        raise yaml.YAMLError(f"a value is not of its type: {reason(error)}") from None
    finally:
        if loader:
            loader.dispose()


def _count(node: yaml.Node, known: dict[int, int], above: tuple[int, ...]) -> int:
    """Return the number of values below a node. Raises YAMLError for duplicate keys, cycles and sizes.

    Nine lists of nine aliases each, nine deep, are 9^9 values: they are counted without being constructed.
    """
    if id(node) in above:
        raise yaml.YAMLError(f"line {node.start_mark.line + 1}: an alias refers to itself")
    if id(node) not in known:
        children: list[yaml.Node] = []
        if isinstance(node, yaml.MappingNode):
            names: set[str] = set()
            for key, _ in node.value:
                if isinstance(key, yaml.ScalarNode):
                    if key.value in names:
                        line = key.start_mark.line + 1
                        raise yaml.YAMLError(f"line {line}: the key {key.value!r} is there twice")
                    names.add(key.value)
            children = [child for pair in node.value for child in pair]
        elif isinstance(node, yaml.SequenceNode):
            children = node.value
        known[id(node)] = 1 + sum(_count(child, known, (*above, id(node))) for child in children)
        if known[id(node)] > LARGEST:
            raise yaml.YAMLError(f"it has more than {LARGEST:,} values")
    return known[id(node)]


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Return the keys and values of a file, which may be in a bucket.

    Raises:
        SdftError: the file is missing or malformed.
    """
    data = read_bytes(path, "give a YAML file, such as configs/quickstart.yaml", limit=LONGEST)
    try:
        tree = _parse(data.decode("utf-8-sig"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SdftError(
            f"config {path} is not valid YAML ({' '.join(str(error).split())}): fix the file."
        ) from None
    if tree is not None and not isinstance(tree, dict):
        raise SdftError(
            f"config {path} holds a {type(tree).__name__}: write keys and values at its top level."
        )
    return tree or {}


def parse_override(text: str, is_text: Callable[[str], bool] = lambda key: False) -> dict[str, Any]:
    """Return `a.b=1` as {"a": {"b": 1}}.

    The value is parsed as YAML, except that of a key for which `is_text` is true: it is taken literally,
    unless it is
    `null`, `None` or in quotes.

    Raises:
        SdftError: the text is not key=value or not UTF-8, or the value is YAML with an error that no text
            would have.
    """
    key, separator, value = text.partition("=")
    if not is_utf8(text):
        raise SdftError(f"override {text!r} contains bytes that are not UTF-8: remove them.")
    if not separator or not key:
        raise SdftError(f"override {text!r} is not key=value: write it like train.batch_size=16.")
    quoted = len(value) > 1 and value[0] == value[-1] and value[0] in "'\""
    if value in ("null", "None"):
        tree: Any = None
    elif is_text(key) and not quoted:
        tree = value
    else:
        try:
            tree = _parse(value) if value else ""
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
