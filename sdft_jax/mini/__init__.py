"""Embedded worlds small enough for a CPU: skills, tokenizers and base models; registered by name."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

_HERE = Path(__file__).parent


def model_directories() -> dict[str | None, Path]:
    """Name -> Hugging Face directory of each embedded model; None names the default one."""
    bases = sorted(path for path in (_HERE / "bases").iterdir() if path.is_dir())
    return dict([(None, _HERE / "base"), *((path.name, path) for path in bases)])


def read_rows(name: str, split: str) -> Sequence[dict[str, Any]]:
    """Rows of an embedded data set. Raises SdftError for an unknown name."""
    from sdft_jax.mini.rows import read

    return read(name, split)
