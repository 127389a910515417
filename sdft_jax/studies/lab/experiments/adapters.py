"""Low-rank adapters: learning against forgetting for SDFT and SFT, with full fine-tuning and with LoRA."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from sdft_jax.config.overrides import merge
from sdft_jax.continual.stages import PRIOR
from sdft_jax.reporting.charts import Axes, Line, plot_lines
from sdft_jax.studies.lab.experiments.skills import seeds_in_words, share_of
from sdft_jax.studies.lab.lab import Comparison, Lab, Variant, each_seed, outcome, sweep
from sdft_jax.studies.lab.reports import COLUMNS, Check, Report, exceeds, table
from sdft_jax.studies.lab.trials import Result
from sdft_jax.studies.lab.worlds import Tree, World, lists

METHODS = {"SDFT": "sdft", "SFT": "sft"}
FULL = "full"
RANKS = (2, 8, 64)
"""64 is the number of outputs of the keys and of the values: the highest rank that all projections allow."""
MORE_RATES = (2e-5, 5e-5, 2e-4, 1e-3, 3e-3)
"""Learning rates beside those of the world."""
CHECKPOINTS = 10
"""The number of evaluations during a run, at equal distances."""
LEARNED = 0.9
"""Accuracy on the new skill at which it counts as learned."""
FIELDS = {"new": "the new skill", "prior": "prior skills"}


def adapters(lab: Lab) -> Report:
    """Compare SDFT with SFT, and LoRA with full fine-tuning, in what a run learns and forgets."""
    comparison, results = _trained(lab)
    column = f"prior (%) at new = {LEARNED:.0%}"
    learned = {label: _share_when_learned(seeds) for label, seeds in results.items()}
    return Report(
        "adapters",
        "LoRA: learning against forgetting",
        "SDFT is above SFT on the new task and on prior skills, with full fine-tuning (Table 5). With LoRA, "
        "SFT learns less and forgets less than with full fine-tuning, the more so the lower the rank "
        "(Biderman et al. 2024, arXiv 2405.09673).",
        _checks(comparison),
        [dict(row) | {column: learned.get(row[""], "–")} for row in table(comparison, COLUMNS)],
        lambda path, caption: _draw(results, comparison.before("prior"), path, caption),
        comparison.sweep,
        [
            _answer(comparison),
            "LoRA adapts all seven projections of every layer, with alpha = 2 rank as in Biderman et al. "
            f"Rank {RANKS[-1]} is the highest that the keys and values of this model allow. The last column "
            f"is the accuracy on prior skills at the first checkpoint with {LEARNED:.0%} on the new skill, "
            "if every seed has one.",
            "All rows have the same rates in their sweeps. A first run had seven, in steps of half a decade; "
            "2e-5, 5e-5 and 2e-4 were added for all rows because SFT's accuracy rose and fell between "
            "neighbors.",
            f"The picture has a point every {_every(lab)} steps: the mean over {seeds_in_words(lab)}, on the "
            "test. All lines begin at the base model, and end at the point with a black edge.",
        ],
    )


def _label(method: str, capacity: str) -> str:
    return f"{method}, {capacity}"


def _capacities() -> dict[str, Tree]:
    """Return the settings of full fine-tuning and of every rank."""
    lora = {f"rank {rank}": {"lora": {"rank": rank, "alpha": 2.0 * rank}} for rank in RANKS}
    return {FULL: {}, **lora}


def _world() -> World:
    """Return the list world with more rates, for adapters need other rates than the model itself."""
    return dataclasses.replace(lists(), rates=(*lists().rates, *MORE_RATES))


def _every(lab: Lab) -> int:
    return max(lab.steps(_world()) // CHECKPOINTS, 1)


def _trained(lab: Lab) -> tuple[Comparison, dict[str, list[Result]]]:
    """Return the comparison at the chosen rates and, by label, the result of each seed with its curve."""
    world = _world()
    skill = world.skills[0]
    variants = [
        Variant(_label(name, capacity), method, changes)
        for name, method in METHODS.items()
        for capacity, changes in _capacities().items()
    ]
    rates, swept = sweep(lab, world, variants, skill)
    watched = {"train": {"eval_every": _every(lab)}}
    curved = [dataclasses.replace(one, changes=merge(one.changes, watched)) for one in variants]
    base, results = each_seed(lab, world, curved, rates, [skill], "adapters")
    outcomes = {
        label: {skill: tuple(outcome(result, skill) for result in seeds)} for label, seeds in results.items()
    }
    return Comparison(world, base["measured"], rates, swept, outcomes), results


def _lora() -> list[str]:
    return [capacity for capacity in _capacities() if capacity != FULL]


def _above(comparison: Comparison, capacity: str, field: str) -> Check:
    """Return the check that SDFT is above SFT in `field`."""
    sdft, sft = (_label(method, capacity) for method in METHODS)
    return exceeds(comparison, field, sdft, sft, f"{capacity}: SDFT above SFT on {FIELDS[field]}")


def _checks(comparison: Comparison) -> list[Check]:
    """Return SDFT against SFT with LoRA, and LoRA against full fine-tuning."""
    checks = [_above(comparison, capacity, field) for capacity in _lora() for field in FIELDS]
    for capacity in _lora():
        full, lora = _label("SFT", FULL), _label("SFT", capacity)
        less = f"{capacity}: SFT {{}} less than with full fine-tuning"
        checks.append(exceeds(comparison, "new", full, lora, less.format("learns"), claimed=False))
        checks.append(exceeds(comparison, "prior", lora, full, less.format("forgets"), claimed=False))
    return checks


def _answer(comparison: Comparison) -> str:
    """Return the answer to the question of the experiment, with the differences that it rests on."""
    answers = {capacity: _is_kept(comparison, capacity) for capacity in _lora()}
    same = set(answers.values())
    told = f"{same.pop()}, at every rank" if len(same) == 1 else "; ".join(map(": ".join, answers.items()))
    differences = {
        field: ", ".join(
            f"{100 * _above(comparison, capacity, field).estimate.mean:+.1f} ({capacity})"
            for capacity in _capacities()
        )
        for field in FIELDS
    }
    return (
        "Does SDFT, with LoRA too, learn the skill at the cost of fewer old ones than SFT? "
        f"{told.capitalize()}. SDFT minus SFT on prior skills, in points: {differences['prior']}; on the new "
        f"skill: {differences['new']}."
    )


def _is_kept(comparison: Comparison, capacity: str) -> str:
    """Return `yes` if SDFT is above SFT on prior skills and not below it on the new one."""
    verdicts = {field: _above(comparison, capacity, field).verdict for field in FIELDS}
    if "differs" in verdicts.values():
        return "no"
    return "yes" if verdicts["prior"] == "agrees" else "cannot be told"


def _points(result: Result) -> list[tuple[float, float, float]]:
    """Return accuracy on the new skill, accuracy on prior skills and KL to base at every checkpoint."""
    return [
        (next(iter(row["tasks"].values())), row[PRIOR], row.get("kl_to_base", 0.0)) for row in result["curve"]
    ]


def _share_when_learned(seeds: Sequence[Result]) -> str:
    """Format the accuracy on prior skills at the first checkpoint that has learned the new skill."""
    first = [next((prior for new, prior, _ in _points(x) if new >= LEARNED), None) for x in seeds]
    reached = [prior for prior in first if prior is not None]
    return share_of(reached) if len(reached) == len(first) else "–"


def _draw(results: Mapping[str, Sequence[Result]], before: float, path: Path, caption: str) -> None:
    """Draw learning against two measures of forgetting."""
    lost, moved = "accuracy lost on prior skills (points)", "KL to base on prior prompts (nats a token)"
    lines = []
    for label, seeds in results.items():
        means = np.mean([_points(result) for result in seeds], axis=0)
        method, _, capacity = label.partition(", ")
        new, prior, kl = means.T
        lines.append(Line(method, 100 * (before - prior), 100 * new, panel=lost, mark=capacity))
        lines.append(Line(method, kl, 100 * new, panel=moved, mark=capacity))
    plot_lines(lines, path, caption, axes=Axes("forgetting", "learning: new skill, accuracy (%)"))
