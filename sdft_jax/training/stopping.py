"""The score of an evaluation, and the decision to stop."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sdft_jax.config.settings import TrainConfig

Scores = Sequence[float | None]
"""The score of each evaluation so far; None for a model beyond the maximum distance from the base."""


def score(row: Mapping[str, Any], options: TrainConfig) -> float | None:
    """Return the accuracy on validation rows, or else on eval.path; None beyond `max_kl`."""
    if _is_too_far(row, options):
        return None
    return row.get("validation", row.get("accuracy"))


def should_stop(options: TrainConfig, scores: Scores, row: Mapping[str, Any]) -> bool:
    """Return True if training should stop, by score or by distance from the base, never by loss.

    Args:
        options: `stop_at`, `patience` and `max_kl`.
        scores: the score of each evaluation so far.
        row: the last evaluation.
    """
    if _is_too_far(row, options):
        return True
    counted = [-1.0 if score is None else score for score in scores]
    if max(counted, default=-1.0) < 0:  # no evaluation has a score
        return False
    reached = options.stop_at is not None and counted[-1] >= options.stop_at
    since_best = len(counted) - 1 - counted.index(max(counted))
    return reached or 0 < options.patience <= since_best


def _is_too_far(row: Mapping[str, Any], options: TrainConfig) -> bool:
    return options.max_kl is not None and row.get("kl_to_base", 0.0) > options.max_kl
