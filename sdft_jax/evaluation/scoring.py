"""The verdicts on completions, and the accuracy of a model on rows with reference answers."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Sequence

from sdft_jax.config import Config
from sdft_jax.data.examples import Example
from sdft_jax.evaluation.answer_log import AnswerLog, Key, plain
from sdft_jax.evaluation.completions import Completion, complete, greedy_role, sampled_role
from sdft_jax.evaluation.eval_set import EvalSet
from sdft_jax.evaluation.grading import Fault, Track, grade_all, grade_together, scorer_name
from sdft_jax.evaluation.scorers import GRADED, TASKS, get_detail
from sdft_jax.evaluation.scorers.grade import Grade
from sdft_jax.models.speaker import Speaker
from sdft_jax.reporting.statistics import wilson
from sdft_jax.types import Params


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """The answers to the rows of an evaluation, with their verdicts."""

    correct: tuple[bool, ...]
    completions: tuple[str, ...]
    lengths: tuple[int, ...]
    """Length of each completion, in tokens."""
    kl_to_base: float | None
    """KL(model || base) in nats per token on the model's own answers; None without a base. The base always
    sees the prompt without the demonstration, so a teacher's KL measures the effect of the demonstration."""
    faults: tuple[Fault, ...] = ()
    """The faults of the scorer."""
    partly: tuple[bool, ...] | None = None
    """True for answers with the grade PARTLY; None for a scorer without grades between correct and wrong."""

    @property
    def accuracy(self) -> float:
        """The share of correct answers."""
        return sum(self.correct) / len(self.correct)

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's interval of the accuracy at 95 %, (low, high)."""
        return wilson(sum(self.correct), len(self.correct))

    @property
    def lenient(self) -> float | None:
        """The share of answers that are correct or partly correct; None for a scorer without such grades."""
        return None if self.partly is None else self.accuracy + sum(self.partly) / len(self.correct)

    @property
    def mean_length(self) -> float:
        """The mean length of a completion, in tokens."""
        return sum(self.lengths) / len(self.lengths)


@dataclasses.dataclass(frozen=True)
class Verdicts:
    """The verdicts on sampled answers."""

    correct: list[list[int]]
    """1 for correct and 0 for wrong, by row and sample."""
    faults: tuple[Fault, ...]
    """The faults of the scorer."""


def evaluate(
    speaker: Speaker,
    rows: EvalSet,
    config: Config,
    *,
    teacher: bool = False,
    base: Params | None = None,
    track: Track = iter,
) -> Evaluation:
    """Answer every row greedily, and score the answers with the scorer of `config.eval.task`.

    Args:
        speaker: the model that answers.
        rows: prompts and reference answers.
        config: its `eval`, `sampling` and `data` sections are read.
        teacher: answer with the demonstration in context.
        base: the parameters that the KL is measured from; None for no KL.
        track: shows progress over the batches.
    """
    batches = complete(speaker, rows, config, greedy_role(config, teacher), base=base, track=track)
    answers = sorted(itertools.chain.from_iterable(batches), key=lambda answer: answer.index)
    grades = _grades(answers, rows, config, track)
    lengths = tuple(x.length for x in answers)
    return Evaluation(
        tuple(grade is Grade.CORRECT for grade in grades),
        tuple(x.text for x in answers),
        lengths,
        None if base is None else sum(x.nats or 0.0 for x in answers) / sum(lengths),
        _faults(grades),
        tuple(grade is Grade.PARTLY for grade in grades) if config.eval.task in GRADED else None,
    )


def sample_verdicts(
    speaker: Speaker, rows: EvalSet, config: Config, seed: int, n: int, track: Track = iter
) -> Verdicts:
    """Return the verdicts on `n` sampled answers to each row.

    Args:
        speaker: the model that answers.
        rows: prompts and reference answers.
        config: its `eval`, `sampling` and `data` sections are read.
        seed: the seed of the samples.
        n: the number of answers per row.
        track: shows progress over the batches.
    """
    batches = complete(speaker, rows, config, sampled_role(config, n, seed), track=track)
    answers = sorted(itertools.chain.from_iterable(batches), key=lambda answer: (answer.index, answer.sample))
    grades = _grades(answers, rows, config, track)
    correct = [int(grade is Grade.CORRECT) for grade in grades]
    return Verdicts([correct[i : i + n] for i in range(0, len(correct), n)], _faults(grades))


def score_log(
    log: AnswerLog, rows: EvalSet, config: Config, keys: Sequence[Key], track: Track = iter
) -> list[Fault]:
    """Score answers with the scorer of `config.eval.task`, and return its faults.

    An answer that this scorer has compared with this reference answer, without a fault, is not scored again.
    Only the process that calls it scores.

    Args:
        log: the answers; the verdicts are added to it.
        rows: prompts and reference answers.
        config: its `eval` and `judge` sections are read.
        keys: the answers to score.
        track: shows progress over the answers.
    """
    task, scorer = config.eval.task, scorer_name(config)
    index = {example.id: i for i, example in enumerate(rows.examples)}
    references = {example.id: plain(example.answer) for example in rows.examples}

    def is_scored(key: Key) -> bool:
        record = log.records[key]
        given = (record.get("scorer"), record.get("answer"), record.get("fault"))
        return given == (scorer, references[key[1:3]], None) and record.get("correct") is not None

    pending = [key for key in keys if not is_scored(key)]
    texts = [log.records[key]["completion"] for key in pending]
    indices = [index[row, turn] for _, row, turn, _ in pending]
    examples = [rows.examples[i] for i in indices]
    grades = _at_rows(grade_all(texts, examples, config, track), indices)
    for (role, row, turn, sample), text, example, grade in zip(pending, texts, examples, grades, strict=True):
        fault = grade if isinstance(grade, Fault) else None
        verdict = {
            "answer": references[row, turn],
            "scorer": scorer,
            "correct": grade is Grade.CORRECT,
            "partly": grade is Grade.PARTLY if task in GRADED else None,
            "decided_by": _decision(task, text, example, fault),
            "fault": fault.reason if fault else None,
        }
        log.add([{"role": role, "row": row, "turn": turn, "sample": sample, **verdict}])
    return list(_faults(grades))


def _grades(
    answers: Sequence[Completion], rows: EvalSet, config: Config, track: Track
) -> list[Grade | Fault]:
    """Return the grade of each answer, the same on all processes."""
    indices = [answer.index for answer in answers]
    examples = [rows.examples[i] for i in indices]
    grades = grade_together([answer.text for answer in answers], examples, config, track)
    return _at_rows(grades, indices)


def _at_rows(grades: Sequence[Grade | Fault], indices: Sequence[int]) -> list[Grade | Fault]:
    """Return the grades of answers to these rows; a fault gets the index of its row."""
    return [
        dataclasses.replace(grade, index=index) if isinstance(grade, Fault) else grade
        for grade, index in zip(grades, indices, strict=True)
    ]


def _decision(task: str, text: str, example: Example, fault: Fault | None) -> str | None:
    """Return what decided the verdict on an answer; None if the scorer does not report it."""
    if TASKS[task].detail is None:
        return None
    return "scorer fault" if fault else get_detail(task, text, example)


def _faults(grades: Iterable[Grade | Fault]) -> tuple[Fault, ...]:
    return tuple(grade for grade in grades if isinstance(grade, Fault))
