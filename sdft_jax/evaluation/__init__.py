"""Evaluation: rows with reference answers, completions, scorers of tasks, accuracies, paired comparisons."""

from etils import epy

with epy.lazy_api_imports(globals()):
    from sdft_jax.evaluation.answer_log import read_answers
    from sdft_jax.evaluation.comparison import Comparison, compare
    from sdft_jax.evaluation.eval_set import EvalSet, encode_eval, load_eval_set, read_eval
    from sdft_jax.evaluation.grading import Fault
    from sdft_jax.evaluation.scoring import Evaluation, Verdicts, evaluate, sample_verdicts
    from sdft_jax.evaluation.summary import summarize

__all__ = [
    "Comparison",
    "EvalSet",
    "Evaluation",
    "Fault",
    "Verdicts",
    "compare",
    "encode_eval",
    "evaluate",
    "load_eval_set",
    "read_answers",
    "read_eval",
    "sample_verdicts",
    "summarize",
]
