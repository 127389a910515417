"""Evaluation: rows with reference answers, the scorers of tasks, and accuracies."""

from etils import epy

with epy.lazy_api_imports(globals()):
    from sdft_jax.evaluation.eval_set import EvalSet, encode_eval, load_eval_set, read_eval
    from sdft_jax.evaluation.scoring import Evaluation, Fault, Verdicts, evaluate, sample_verdicts

__all__ = [
    "EvalSet",
    "Evaluation",
    "Fault",
    "Verdicts",
    "encode_eval",
    "evaluate",
    "load_eval_set",
    "read_eval",
    "sample_verdicts",
]
