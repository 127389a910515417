"""`sdft export`: a run's checkpoint as a Hugging Face directory, or its adapters as one of PEFT."""

from __future__ import annotations

from pathlib import Path

from sdft_jax.reporting.reporter import process_reporter
from sdft_jax.training.export import export


def run(directory: str, target: str, best: bool, dtype: str | None, merge: bool) -> None:
    """Export the run in `directory` to `target`, and print the checkpoint that was used."""
    chosen = export(directory, target, best, dtype, merge)
    process_reporter().print(f"{chosen} -> {Path(target)}")
