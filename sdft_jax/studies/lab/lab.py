"""Building blocks of experiments: variants of a method, learning-rate sweeps, and runs over seeds.

Every variant has the same candidate learning rates and the same number of trials. The rate is chosen on
validation rows with a seed that is not reported; the test rows are evaluated with the chosen rate only.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sdft_jax.config.overrides import merge
from sdft_jax.continual.stages import PRIOR
from sdft_jax.reporting.statistics import Estimate, mean_interval
from sdft_jax.studies.lab.pool import run_trials
from sdft_jax.studies.lab.trials import Result, Trial
from sdft_jax.studies.lab.worlds import Tree, World, configuration

SWEEP_SEED = 100
TIE = 0.01
"""Validation accuracies within this difference count as equal; the prior skills then decide."""


@dataclasses.dataclass(frozen=True)
class Lab:
    """The size of an experiment, and the directory of its trials."""

    directory: Path
    seeds: tuple[int, ...] = (0, 1, 2)
    workers: int = 1
    quick: bool = False
    """One seed, a third of the steps and three rates: a check that everything runs, not a result."""

    def rates(self, world: World) -> tuple[float, ...]:
        """Return the learning rates of the sweep."""
        return world.rates[1:4] if self.quick else world.rates

    def steps(self, world: World) -> int:
        """Return the number of updates per stage."""
        return max(world.steps // 3, 1) if self.quick else world.steps


@dataclasses.dataclass(frozen=True)
class Variant:
    """A training method with its settings."""

    label: str
    method: str = "sdft"
    changes: Tree = dataclasses.field(default_factory=dict)
    rate_of: str | None = None
    """Label of the variant whose chosen learning rate is reused; None: this variant has its own sweep."""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """Metrics after one training: accuracies in [0, 1], KL in nats per token, lengths in tokens."""

    new: float
    prior: float
    kl: float
    """KL(model || base) on prior prompts."""
    kl_new: float
    """KL(model || base) on prompts of the new skill."""
    length: float
    """The mean number of tokens in an answer to the new skill."""
    measured: Mapping[str, Any]
    """All measurements after the last stage."""


@dataclasses.dataclass(frozen=True)
class Swept:
    """Validation accuracies of one variant at one learning rate."""

    label: str
    rate: float
    new: float
    prior: float
    chosen: bool


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Results of several variants on one world."""

    world: World
    base: Mapping[str, Any]
    """Measurements of the base model on the test rows, from `continual.arms.measure_base`."""
    rates: Mapping[str, float]
    sweep: tuple[Swept, ...]
    outcomes: Mapping[str, Mapping[str, tuple[Outcome, ...]]]
    """Label -> skill -> one outcome per seed."""

    def values(self, label: str, field: str) -> list[float]:
        """Return the mean over skills for each seed."""
        by_skill = [[getattr(x, field) for x in seeds] for seeds in self.outcomes[label].values()]
        return [sum(column) / len(column) for column in zip(*by_skill, strict=True)]

    def estimate(self, label: str, field: str) -> Estimate:
        """Return the mean over seeds, with its interval."""
        return mean_interval(self.values(label, field))

    def before(self, field: str, role: str = "student") -> float:
        """Return the base model's `new`, `prior`, `length` or `kl_new`, as the mean over skills."""
        name = {"new": "accuracy", "prior": "accuracy", "length": "length", "kl_new": "kl_to_base"}[field]
        skills = [PRIOR] if field == "prior" else list(next(iter(self.outcomes.values())))
        values = [self.base[role][skill][name] for skill in skills]
        return sum(values) / len(values)


def arm_trial(
    lab: Lab,
    world: World,
    variant: Variant,
    skills: Sequence[str],
    rate: float,
    seed: int,
    split: str = "heldout",
    **extra: Any,
) -> Trial:
    """Return the trial that trains a variant on these skills in sequence."""
    config = configuration(world, tuple(skills), split, variant.method, lab.steps(world), variant.changes)
    settings = {"config": config, "method": variant.method, "learning_rate": rate, "seed": seed, **extra}
    title = f"{world.name} {'+'.join(skills)} {variant.label} lr {rate:g} seed {seed}"
    return Trial("arm", settings, title)


def base_trial(
    lab: Lab,
    world: World,
    skills: Sequence[str],
    split: str = "heldout",
    changes: Tree | None = None,
    **extra: Any,
) -> Trial:
    """Return the trial that measures the base model on these skills."""
    config = configuration(world, tuple(skills), split, "sdft", lab.steps(world), changes or {})
    return Trial("base", {"config": config, **extra}, f"{world.name} {'+'.join(skills)} base")


def sweep(
    lab: Lab, world: World, variants: Sequence[Variant], skill: str
) -> tuple[dict[str, float], tuple[Swept, ...]]:
    """Return each variant's rate, chosen on validation rows of one skill, and the results of the sweep."""
    pairs = [(variant, rate) for variant in variants if variant.rate_of is None for rate in lab.rates(world)]
    trials = [
        arm_trial(lab, world, variant, [skill], rate, SWEEP_SEED, "validation") for variant, rate in pairs
    ]
    results = run_trials(trials, lab.directory, lab.workers, f"{world.name}: sweep")
    outcomes: dict[str, dict[float, Outcome]] = {}
    for (variant, rate), result in zip(pairs, results, strict=True):
        outcomes.setdefault(variant.label, {})[rate] = outcome(result, skill)
    rates = {label: choose(by_rate) for label, by_rate in outcomes.items()}
    rates |= {variant.label: rates[variant.rate_of] for variant in variants if variant.rate_of}
    rows = [
        Swept(label, rate, x.new, x.prior, rate == rates[label])
        for label, by_rate in outcomes.items()
        for rate, x in by_rate.items()
    ]
    return rates, tuple(rows)


def choose(outcomes: Mapping[float, Outcome]) -> float:
    """Return the learning rate with the best accuracy on the new skill.

    Among the rates within `TIE` of the best, return the one with the best accuracy on prior skills; if these
    are equal too, the lowest.
    """
    best = max(x.new for x in outcomes.values())
    tied = [rate for rate, x in outcomes.items() if x.new >= best - TIE]
    return max(tied, key=lambda rate: (outcomes[rate].prior, -rate))


def compare(
    lab: Lab, world: World, variants: Sequence[Variant], skills: Sequence[str] | None = None, **extra: Any
) -> Comparison:
    """Sweep on the first skill, then train every variant on every skill with every seed."""
    skills = skills or world.skills[:1]
    rates, swept = sweep(lab, world, variants, skills[0])
    keys = [(variant, skill, seed) for variant in variants for skill in skills for seed in lab.seeds]
    trials = [
        arm_trial(lab, world, variant, [skill], rates[variant.label], seed, **extra)
        for variant, skill, seed in keys
    ]
    bases = [base_trial(lab, world, [skill], **extra) for skill in skills]
    results = run_trials([*bases, *trials], lab.directory, lab.workers, world.name)
    grouped: dict[str, dict[str, list[Outcome]]] = {}
    for (variant, skill, _), result in zip(keys, results[len(bases) :], strict=True):
        grouped.setdefault(variant.label, {}).setdefault(skill, []).append(outcome(result, skill))
    outcomes = {
        label: {skill: tuple(seeds) for skill, seeds in by_skill.items()}
        for label, by_skill in grouped.items()
    }
    base: dict[str, Any] = {}
    for result in results[: len(bases)]:
        base = merge(base, result["measured"])
    return Comparison(world, base, rates, swept, outcomes)


def each_seed(
    lab: Lab,
    world: World,
    variants: Sequence[Variant],
    rates: Mapping[str, float],
    skills: Sequence[str],
    description: str,
    **extra: Any,
) -> tuple[Result, dict[str, list[Result]]]:
    """Return the base model's result on these skills and, by label, one result per seed of each variant."""
    keys = [(variant, seed) for variant in variants for seed in lab.seeds]
    trials = [
        arm_trial(lab, world, variant, skills, rates[variant.label], seed, **extra) for variant, seed in keys
    ]
    bases = [base_trial(lab, world, skills, **extra)]
    base, *results = run_trials([*bases, *trials], lab.directory, lab.workers, description)
    by_label: dict[str, list[Result]] = {}
    for (variant, _), result in zip(keys, results, strict=True):
        by_label.setdefault(variant.label, []).append(result)
    return base, by_label


def outcome(result: Result, skill: str) -> Outcome:
    """Return the metrics after the last stage, with `skill` as the new one."""
    measured = result["measured"][-1]
    return Outcome(
        new=measured[skill]["accuracy"],
        prior=measured[PRIOR]["accuracy"],
        kl=measured[PRIOR]["kl_to_base"],
        kl_new=measured[skill]["kl_to_base"],
        length=measured[skill]["length"],
        measured=measured,
    )
