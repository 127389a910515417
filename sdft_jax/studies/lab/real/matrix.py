"""The trials of the study: the base model, a sweep of every method's rate, and a search for better settings.

A method's rate on a task is that with the most right answers on the validation rows, and of several the
lowest. The sweep has the first seed; other seeds have the chosen rate only.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from sdft_jax.config.overrides import merge
from sdft_jax.continual.arms import VALIDATION
from sdft_jax.studies.lab.pool import run_trials
from sdft_jax.studies.lab.real import general
from sdft_jax.studies.lab.real.study import NEW, SETTINGS, TASKS, digest
from sdft_jax.studies.lab.trials import Result, Trial

Tree = Mapping[str, Any]

METHODS = {"sdft": "SDFT", "sft": "SFT", "cpt": "CPT"}
RATES = {"sdft": (3e-4, 1e-3, 3e-3, 1e-2), "sft": (1e-4, 3e-4, 1e-3), "cpt": (1e-4, 3e-4, 1e-3)}
"""Method -> the learning rates of its sweep."""
SEARCH: Mapping[str, tuple[str, str, Tree]] = {
    "tools: forward KL on the teacher's samples": ("tools", "offline_kl", {}),
    "tools: SDFT, three times the steps": ("tools", "sdft", {"train": {"steps": 72}}),
    "rule: SDFT, reverse KL, temperature 1": (
        "rule",
        "sdft",
        {"divergence": {"alpha": 1.0}, "sampling": {"temperature": 1.0}},
    ),
    "facts: SDFT, three times the steps": ("facts", "sdft", {"train": {"steps": 72}}),
}
"""Name -> task, method and changed settings of trials beside the comparison, each with the first seed and the
rate that SDFT has on the task."""
QUICK: Tree = {"data": {"limit": 8}, "train": {"steps": 2}, "eval": {"limit": 4}}
"""Changes of --quick: a check that everything runs."""


@dataclasses.dataclass(frozen=True)
class Study:
    """The model, the seeds, and the directory of the trials."""

    model: str
    directory: Path
    seeds: tuple[int, ...] = (0,)
    quick: bool = False
    changes: Tree = dataclasses.field(default_factory=dict)
    """Settings that differ from `study.SETTINGS` in every trial."""

    def trial(
        self, task: str, method: str, rate: float = 0.0, seed: int = 0, changes: Tree | None = None
    ) -> Trial:
        """Return a trial; method `oracle` measures the base model, without and with the context."""
        settings = {
            "model": self.model,
            "task": task,
            "rows": digest(TASKS[task]),
            "method": method,
            "rate": rate,
            "seed": seed,
            "config": functools.reduce(
                merge, (SETTINGS, QUICK if self.quick else {}, self.changes, changes or {})
            ),
        }
        return Trial("real", settings, f"{task} {method} lr {rate:g} seed {seed}")

    def run(self, trials: Sequence[Trial], description: str) -> list[Result]:
        """Return the results of trials, one after the other: a training uses all cores."""
        return run_trials(trials, self.directory, 1, description)


@dataclasses.dataclass(frozen=True)
class Scored:
    """One model on one task."""

    verdicts: Mapping[str, Sequence[bool]]
    """Kind of prompt -> verdicts on its rows; `prior` for the general questions."""
    completions: Sequence[str]
    """The answers to the rows of the task."""
    kl_prior: float
    """KL(model || base) on general questions, in nats per token."""
    kl_new: float
    perplexity: float
    length: float
    """Mean length of an answer to the task, in tokens."""
    seconds: float = 0.0
    """Wall-clock time of the training."""
    cpu_seconds: float = 0.0
    """Processor time of the training, summed over cores."""
    validation: Sequence[bool] = ()
    """Verdicts on the validation rows."""
    rate: float = 0.0
    """The learning rate of the training; 0 without training."""

    def share(self, kind: str) -> float:
        """Return the accuracy on a kind of prompt."""
        return sum(self.verdicts[kind]) / len(self.verdicts[kind])

    @property
    def new(self) -> list[bool]:
        """The verdicts on all rows of the task."""
        return [x for kind, verdicts in self.verdicts.items() if kind != "prior" for x in verdicts]


def scored(task: str, result: Result, rate: float = 0.0, role: str = "measured") -> Scored:
    """Return the verdicts on a result; the teacher (`role`) has neither prior skills nor validation rows."""
    measured, student, score = result[role], result["measured"], TASKS[task].score
    verdicts: dict[str, list[bool]] = {}
    # eval.limit may have cut the rows
    for completion, row in zip(measured[NEW]["completions"], TASKS[task].test(), strict=False):
        verdicts.setdefault(row["skill"], []).append(score(completion, row))
    answers = student["prior"]["completions"]
    verdicts["prior"] = [general.score(text, row) for text, row in zip(answers, general.rows(), strict=False)]
    held_out = student[f"{VALIDATION}{NEW}"]["completions"]
    return Scored(
        verdicts,
        measured[NEW]["completions"],
        student["prior"]["kl_to_base"],
        measured[NEW]["kl_to_base"],
        result["perplexity"],
        measured[NEW]["length"],
        result.get("seconds", 0.0),
        result.get("cpu_seconds", 0.0),
        [score(text, row) for text, row in zip(held_out, TASKS[task].validation(), strict=False)],
        rate,
    )


@dataclasses.dataclass(frozen=True)
class Findings:
    """The results of the study, or of the parts of it that have run."""

    base: Mapping[str, Scored]
    """Task -> the base model."""
    teacher: Mapping[str, Scored]
    """Task -> the base model with the context: the oracle."""
    sweep: Mapping[str, Mapping[str, Sequence[Scored]]]
    """Task -> method -> one result per rate, of the first seed."""
    methods: Mapping[str, Mapping[str, Sequence[Scored]]]
    """Task -> method -> one result per seed, at the rate that the sweep chose."""
    search: Mapping[str, Scored] = dataclasses.field(default_factory=dict)
    """Name in `SEARCH` -> result, for the trials that have run."""


def find(study: Study) -> Iterator[Findings]:
    """Run the trials that have no stored result; yield the comparison, and again after each trial of the
    search.
    """
    findings = _compare(study)
    yield findings
    for name, (task, method, changes) in SEARCH.items():
        rate = best(findings.sweep[task]["sdft"]).rate
        (result,) = study.run([study.trial(task, method, rate, study.seeds[0], changes)], name)
        findings = dataclasses.replace(findings, search={**findings.search, name: scored(task, result, rate)})
        yield findings


def best(results: Sequence[Scored]) -> Scored:
    """Return the result with the most right answers on the validation rows; of several, the lowest rate's."""
    return max(results, key=lambda result: (sum(result.validation), -result.rate))


def _compare(study: Study) -> Findings:
    """Return the base model, the oracle, and the sweep and the chosen rate of every method on every task."""
    oracles = study.run([study.trial(task, "oracle") for task in TASKS], "base model")
    pairs = [(task, method) for task in TASKS for method in METHODS if method != "cpt" or TASKS[task].texts]
    sweep: dict[str, dict[str, list[Scored]]] = {}
    grid = [(task, method, RATES[method]) for task, method in pairs]
    for task, method, results in _trained(study, study.seeds[:1], grid):
        sweep.setdefault(task, {})[method] = results
    chosen = [(task, method, (best(sweep[task][method]).rate,)) for task, method in pairs]
    methods: dict[str, dict[str, list[Scored]]] = {}
    for task, method, results in _trained(study, study.seeds, chosen):
        methods.setdefault(task, {})[method] = results
    return Findings(
        base={task: scored(task, result) for task, result in zip(TASKS, oracles, strict=True)},
        teacher={
            task: scored(task, result, role="teacher") for task, result in zip(TASKS, oracles, strict=True)
        },
        sweep=sweep,
        methods=methods,
    )


def _trained(
    study: Study, seeds: Sequence[int], wanted: Sequence[tuple[str, str, Sequence[float]]]
) -> Iterator[tuple[str, str, list[Scored]]]:
    """Run every rate and seed of (task, method, rates); yield task, method and the results."""
    keys = [(task, method, rate, seed) for task, method, rates in wanted for rate in rates for seed in seeds]
    results = dict(zip(keys, study.run([study.trial(*key) for key in keys], "methods"), strict=True))
    for task, method, rates in wanted:
        own = [scored(task, results[task, method, rate, seed], rate) for rate in rates for seed in seeds]
        yield task, method, own
