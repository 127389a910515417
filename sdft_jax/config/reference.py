"""Every configuration key with its default and meaning, read from the dataclasses' source.

`python -m sdft_jax.config.reference` prints the table of configs/README.md.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import itertools
import textwrap
from collections.abc import Iterator
from typing import Any

from sdft_jax.config import Config


@dataclasses.dataclass(frozen=True)
class Option:
    """One dotted key."""

    key: str
    default: Any
    meaning: str


def options(section: Any = Config, prefix: str = "") -> Iterator[Option]:
    """All keys, in order of declaration."""
    meanings = _documentation(section)
    for field in dataclasses.fields(section):
        default = getattr(section(), field.name)
        if dataclasses.is_dataclass(default):
            yield from options(type(default), f"{prefix}{field.name}.")
        else:
            yield Option(prefix + field.name, default, meanings.get(field.name, ""))


def as_help() -> str:
    """The keys for a terminal."""
    lines = []
    for option in options():
        lines.append(f"{option.key}={option.default}")
        lines += textwrap.wrap(option.meaning, 100, initial_indent="    ", subsequent_indent="    ")
    return "\n".join(lines)


def as_markdown() -> str:
    """The keys as a table."""
    lines = ["| key | default | meaning |", "| --- | --- | --- |"]
    for option in options():
        meaning = option.meaning.replace("|", r"\|")
        lines.append(f"| `{option.key}` | `{option.default}` | {meaning} |")
    return "\n".join(lines)


def _documentation(section: Any) -> dict[str, str]:
    """The strings under the fields of a dataclass, which Python itself does not keep."""
    body = ast.parse(textwrap.dedent(inspect.getsource(section))).body[0]
    assert isinstance(body, ast.ClassDef)
    found = {}
    for field, text in itertools.pairwise(body.body):
        if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr):
            found[ast.unparse(field.target)] = " ".join(str(ast.literal_eval(text.value)).split())
    return found


if __name__ == "__main__":
    print(as_markdown())
