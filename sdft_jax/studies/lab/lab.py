"""What experiments are made of: variants of a method, a sweep on validation rows, seeds on the test.

Every variant gets the same learning rates to choose from and the same number of trials. The choice is made on
validation rows with a seed that is not reported; the test rows are seen once, with the chosen rate.
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
"""Validation accuracies that differ by no more count as equal; then the prior skills decide."""


@dataclasses.dataclass(frozen=True)
class Lab:
    """How much is run, and where."""

    directory: Path
    seeds: tuple[int, ...] = (0, 1, 2)
    workers: int = 1
    quick: bool = False
    """One seed, a third of the steps and three rates: shows that everything runs, not what is true."""

    def rates(self, world: World) -> tuple[float, ...]:
        """What is swept over."""
        return world.rates[1:4] if self.quick else world.rates

    def steps(self, world: World) -> int:
        """Updates of a stage."""
        return max(world.steps // 3, 1) if self.quick else world.steps


@dataclasses.dataclass(frozen=True)
class Variant:
    """One way to train."""

    label: str
    method: str = "sdft"
    changes: Tree = dataclasses.field(default_factory=dict)
    rate_of: str | None = None
    """Label of another variant whose chosen rate is used; None: a sweep of its own."""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What one training led to: accuracies in [0, 1], distances in nats per token, lengths in tokens."""

    new: float
    prior: float
    kl: float
    """KL(model || base) on prior prompts."""
    kl_new: float
    """The same on the prompts of the new skill."""
    length: float
    """Mean tokens of an answer to the new skill."""
    measured: Mapping[str, Any]
    """Everything that was measured after the last stage."""


@dataclasses.dataclass(frozen=True)
class Swept:
    """One variant at one learning rate, on validation rows."""

    label: str
    rate: float
    new: float
    prior: float
    chosen: bool


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Variants on one world."""

    world: World
    base: Mapping[str, Any]
    """What `continual.measure_base` found, on the test rows."""
    rates: Mapping[str, float]
    sweep: tuple[Swept, ...]
    outcomes: Mapping[str, Mapping[str, tuple[Outcome, ...]]]
    """label -> skill -> one for each seed."""

    def values(self, label: str, field: str) -> list[float]:
        """For each seed the mean over skills."""
        by_skill = [[getattr(x, field) for x in seeds] for seeds in self.outcomes[label].values()]
        return [sum(column) / len(column) for column in zip(*by_skill, strict=True)]

    def estimate(self, label: str, field: str) -> Estimate:
        """Mean over seeds, with its interval."""
        return mean_interval(self.values(label, field))

    def before(self, field: str, role: str = "student") -> float:
        """Mean over skills of what the base model gave: `new`, `prior`, `length` or `kl_new`."""
        name = {"new": "accuracy", "prior": "accuracy", "length": "length", "kl_new": "kl_to_base"}[field]
        skills = [PRIOR] if field == "prior" else list(next(iter(self.outcomes.values())))
        found = [self.base[role][skill][name] for skill in skills]
        return sum(found) / len(found)


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
    """Train a variant on these skills in turn."""
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
    """Measure the base model on these skills."""
    config = configuration(world, tuple(skills), split, "sdft", lab.steps(world), changes or {})
    return Trial("base", {"config": config, **extra}, f"{world.name} {'+'.join(skills)} base")


def sweep(
    lab: Lab, world: World, variants: Sequence[Variant], skill: str
) -> tuple[dict[str, float], tuple[Swept, ...]]:
    """Each variant's learning rate, chosen on validation rows of one skill, and all that was tried."""
    pairs = [(variant, rate) for variant in variants if variant.rate_of is None for rate in lab.rates(world)]
    trials = [
        arm_trial(lab, world, variant, [skill], rate, SWEEP_SEED, "validation") for variant, rate in pairs
    ]
    results = run_trials(trials, lab.directory, lab.workers, f"{world.name}: sweep")
    found: dict[str, dict[float, Outcome]] = {}
    for (variant, rate), result in zip(pairs, results, strict=True):
        found.setdefault(variant.label, {})[rate] = outcome(result, skill)
    rates = {label: choose(trials) for label, trials in found.items()}
    rates |= {variant.label: rates[variant.rate_of] for variant in variants if variant.rate_of}
    rows = [
        Swept(label, rate, x.new, x.prior, rate == rates[label])
        for label, trials in found.items()
        for rate, x in trials.items()
    ]
    return rates, tuple(rows)


def choose(trials: Mapping[float, Outcome]) -> float:
    """The rate of highest accuracy on the new skill; among those within `TIE`, of highest on prior skills."""
    best = max(x.new for x in trials.values())
    tied = [rate for rate, x in trials.items() if x.new >= best - TIE]
    return max(tied, key=lambda rate: (trials[rate].prior, -rate))


def compare(
    lab: Lab, world: World, variants: Sequence[Variant], skills: Sequence[str] | None = None, **extra: Any
) -> Comparison:
    """Sweep on the first skill, then every variant on every skill with every seed."""
    skills = skills or world.skills[:1]
    rates, swept = sweep(lab, world, variants, skills[0])
    keys = [(variant, skill, seed) for variant in variants for skill in skills for seed in lab.seeds]
    trials = [
        arm_trial(lab, world, variant, [skill], rates[variant.label], seed, **extra)
        for variant, skill, seed in keys
    ]
    bases = [base_trial(lab, world, [skill], **extra) for skill in skills]
    results = run_trials([*bases, *trials], lab.directory, lab.workers, world.name)
    found: dict[str, dict[str, list[Outcome]]] = {}
    for (variant, skill, _), result in zip(keys, results[len(bases) :], strict=True):
        found.setdefault(variant.label, {}).setdefault(skill, []).append(outcome(result, skill))
    outcomes = {
        label: {skill: tuple(seeds) for skill, seeds in by_skill.items()} for label, by_skill in found.items()
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
    """What the base model gives on these skills, and by label what every seed of each variant does."""
    keys = [(variant, seed) for variant in variants for seed in lab.seeds]
    trials = [
        arm_trial(lab, world, variant, skills, rates[variant.label], seed, **extra) for variant, seed in keys
    ]
    bases = [base_trial(lab, world, skills, **extra)]
    base, *results = run_trials([*bases, *trials], lab.directory, lab.workers, description)
    found: dict[str, list[Result]] = {}
    for (variant, _), result in zip(keys, results, strict=True):
        found.setdefault(variant.label, []).append(result)
    return base, found


def outcome(result: Result, skill: str) -> Outcome:
    """The state after the last stage, seen from one skill."""
    measured = result["measured"][-1]
    return Outcome(
        new=measured[skill]["accuracy"],
        prior=measured[PRIOR]["accuracy"],
        kl=measured[PRIOR]["kl_to_base"],
        kl_new=measured[skill]["kl_to_base"],
        length=measured[skill]["length"],
        measured=measured,
    )
