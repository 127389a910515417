"""`sdft export`: a run's checkpoint as a Hugging Face directory."""

from __future__ import annotations

from pathlib import Path

from sdft_jax.reporting.reporter import process_reporter
from sdft_jax.training.export import export


def run(directory: str, target: str, best: bool, dtype: str | None) -> None:
    """Export the run in `directory` to `target`, and print the checkpoint that was used."""
    chosen = export(directory, target, best, dtype)
    process_reporter().print(f"{chosen} -> {Path(target)}")
