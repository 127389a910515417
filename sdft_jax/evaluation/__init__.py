"""Answers scored: evaluation rows, tasks and accuracy."""

from etils import epy

with epy.lazy_api_imports(globals()):
    from sdft_jax.evaluation.eval_set import EvalSet, prepare_eval
    from sdft_jax.evaluation.scoring import Evaluation, decode, evaluate, sample_verdicts

__all__ = [
    "EvalSet",
    "Evaluation",
    "decode",
    "evaluate",
    "prepare_eval",
    "sample_verdicts",
]
