"""Embedded worlds that are small enough for a CPU: rows, tokenizers and base models, selected by name."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

_PACKAGE_DIRECTORY = Path(__file__).parent


def model_directories() -> dict[str | None, Path]:
    """Return the Hugging Face directory of each built-in model by name; the key None is the default model."""
    directories = sorted(path for path in (_PACKAGE_DIRECTORY / "bases").iterdir() if path.is_dir())
    return dict([(None, _PACKAGE_DIRECTORY / "base"), *((path.name, path) for path in directories)])


def read_rows(name: str, split: str) -> Sequence[dict[str, Any]]:
    """Return the rows of a built-in dataset. Raises SdftError if the name is unknown."""
    from sdft_jax.mini.rows import read

    return read(name, split)
