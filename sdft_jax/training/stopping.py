"""The score of an evaluation, and whether to stop."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sdft_jax.config.settings import TrainConfig

Scores = Sequence[float | None]
"""The score of every evaluation so far; None where the model was too far from the base to count."""


def score(row: Mapping[str, Any], options: TrainConfig) -> float | None:
    """What choosing goes by: the accuracy on validation rows, or else on eval.path; None beyond `max_kl`."""
    if options.max_kl is not None and row.get("kl_to_base", 0.0) > options.max_kl:
        return None
    return row.get("validation", row.get("accuracy"))


def enough(options: TrainConfig, scores: Scores, row: Mapping[str, Any]) -> bool:
    """Whether to stop: by score or by distance from the base, never by loss.

    Args:
        options: `stop_at`, `patience` and `max_kl`.
        scores: of all evaluations so far.
        row: the last evaluation.
    """
    if options.max_kl is not None and row.get("kl_to_base", 0.0) > options.max_kl:
        return True
    counted = [-1.0 if score is None else score for score in scores]
    if max(counted, default=-1.0) < 0:  # nothing to go by
        return False
    reached = options.stop_at is not None and counted[-1] >= options.stop_at
    since_best = len(counted) - 1 - counted.index(max(counted))
    return reached or 0 < options.patience <= since_best
