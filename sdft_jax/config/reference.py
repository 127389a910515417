"""Every configuration key with its default and documentation, read from the dataclasses.

`python -m sdft_jax.config.reference` prints the table of configs/README.md.
"""

from __future__ import annotations

import dataclasses
import re
import textwrap
from collections.abc import Iterator
from typing import Any

import yaml

from sdft_jax.config.config import Config


@dataclasses.dataclass(frozen=True)
class Option:
    """One dotted key."""

    key: str
    default: Any
    documentation: str


def options(section: Any = Config, prefix: str = "") -> Iterator[Option]:
    """Yield all keys in order of declaration."""
    documented = section.__pydantic_fields__
    for field in dataclasses.fields(section):
        default = getattr(section(), field.name)
        if dataclasses.is_dataclass(default):
            yield from options(type(default), f"{prefix}{field.name}.")
        else:
            documentation = " ".join((documented[field.name].description or "").split())
            documentation = re.sub(r"\bNone\b", "null", documentation)
            yield Option(prefix + field.name, default, documentation)


def as_yaml(value: Any) -> str:
    """Return a value as a configuration file or a `key=value` argument spells it."""
    plain = list(value) if isinstance(value, tuple) else value
    return yaml.safe_dump(plain, default_flow_style=True, width=1000).removesuffix("...\n").strip()


def as_help() -> str:
    """Return the keys as text for a terminal."""
    lines = []
    for option in options():
        lines.append(f"{option.key}={as_yaml(option.default)}")
        lines += textwrap.wrap(option.documentation, 100, initial_indent="    ", subsequent_indent="    ")
    return "\n".join(lines)


def as_markdown() -> str:
    """Return the keys as a Markdown table."""
    lines = ["| key | default | documentation |", "| --- | --- | --- |"]
    for option in options():
        documentation = option.documentation.replace("|", r"\|")
        lines.append(f"| `{option.key}` | `{as_yaml(option.default)}` | {documentation} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(as_markdown())
