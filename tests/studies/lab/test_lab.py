"""Tests of variants, sweeps and comparisons: equal sweeps for all variants, and no choice on test rows."""

import json
from collections import Counter

import pytest

from sdft_jax.reporting.statistics import mean_interval
from sdft_jax.studies.lab.experiments import EXPERIMENTS, experiment
from sdft_jax.studies.lab.lab import (
    SWEEP_SEED,
    Comparison,
    Lab,
    Outcome,
    Variant,
    arm_trial,
    base_trial,
    choose,
    compare,
    outcome,
    sweep,
)
from sdft_jax.studies.lab.worlds import CHAINS, STORMS, lists
from synthetic import fake_runs, result_of, strength

PLAIN, SFT = Variant("plain"), Variant("SFT", "sft")
RIDER = Variant("rider", changes={"teacher": {"rate": 0.1}}, rate_of="plain")


def outcome_of(new, prior):
    return Outcome(new, prior, 0.0, 0.0, 0.0, {})


@pytest.mark.parametrize(
    ("trials", "chosen"),
    [
        ({1e-5: (0.5, 0.9), 3e-5: (0.8, 0.5), 1e-4: (0.7, 0.7)}, 3e-5),
        ({1e-5: (0.795, 0.9), 3e-5: (0.8, 0.5), 1e-4: (0.7, 1.0)}, 1e-5),  # tie on new: prior decides
        ({1e-5: (0.785, 0.9), 3e-5: (0.8, 0.5)}, 3e-5),  # not a tie
        ({1e-5: (0.8, 0.9), 3e-5: (0.8, 0.9)}, 1e-5),  # tie on both: the lower rate
        ({3e-5: (0.0, 0.2), 1e-4: (0.0, 0.3)}, 1e-4),
        # Ties are relative to the best rate, not to the next one.
        ({1e-5: (0.784, 1.0), 3e-5: (0.792, 0.8), 1e-4: (0.8, 0.7)}, 3e-5),
    ],
)
def test_choose(trials, chosen):
    assert choose({rate: outcome_of(*numbers) for rate, numbers in trials.items()}) == chosen


def test_sweep_runs_every_variant_once_per_rate_and_chooses_a_rate(monkeypatch, tmp_path):
    requested = fake_runs(monkeypatch)
    rates, rows = sweep(Lab(tmp_path), lists(), [PLAIN, SFT, RIDER], "blax")
    assert Counter(trial.settings["method"] for trial in requested) == {"sdft": 5, "sft": 5}
    assert {trial.settings["seed"] for trial in requested} == {SWEEP_SEED}
    assert rates == {"plain": 3e-5, "SFT": 3e-5, "rider": 3e-5}
    assert [(row.label, row.rate) for row in rows if row.chosen] == [("plain", 3e-5), ("SFT", 3e-5)]
    for row, trial in zip(rows, requested, strict=True):
        assert row.rate == trial.settings["learning_rate"]
        assert (row.new, row.prior) == pytest.approx(strength(trial.settings, True), abs=0.003)


def test_comparison_has_an_outcome_per_variant_skill_and_seed(monkeypatch, tmp_path):
    requested = fake_runs(monkeypatch)
    comparison = compare(Lab(tmp_path, seeds=(0, 1)), lists(), [PLAIN, RIDER], ["blax", "drib"])
    tests = [trial for trial in requested if trial.settings.get("seed") in (0, 1)]
    assert len(tests) == 2 * 2 * 2
    assert {
        label: {s: len(x) for s, x in skills.items()} for label, skills in comparison.outcomes.items()
    } == {label: {"blax": 2, "drib": 2} for label in ("plain", "rider")}
    first = next(t for t in tests if t.settings["config"]["teacher"]["rate"] == 0.1)
    assert comparison.outcomes["rider"]["blax"][0] == outcome(result_of(first), "blax")
    assert comparison.base["student"].keys() == {"blax", "drib", "prior"}
    assert comparison.before("new") == pytest.approx(0.05)
    assert comparison.before("new", "teacher") == 0.98
    assert comparison.before("prior") == 0.99


def test_values_are_means_over_skills_per_seed():
    outcomes = {
        "a": {"x": (outcome_of(0.2, 1), outcome_of(0.4, 1)), "y": (outcome_of(0.6, 1), outcome_of(1.0, 1))}
    }
    comparison = Comparison(lists(), {}, {}, (), outcomes)
    assert comparison.values("a", "new") == pytest.approx([0.4, 0.7])
    assert comparison.estimate("a", "new") == pytest.approx(mean_interval([0.4, 0.7]))


def test_outcome_is_measured_after_the_last_stage():
    result = result_of(arm_trial(Lab(None), lists(), SFT, ["blax", "drib"], 3e-5, 0))
    before, after = result["measured"]
    final = outcome(result, "blax")
    assert final.new == after["blax"]["accuracy"] < before["blax"]["accuracy"]
    assert (final.prior, final.kl) == (after["prior"]["accuracy"], after["prior"]["kl_to_base"])
    assert (final.kl_new, final.length) == (after["blax"]["kl_to_base"], after["blax"]["length"])


def test_quick_has_fewer_steps_and_rates():
    full, quick = Lab(None), Lab(None, quick=True)
    assert (full.rates(STORMS), quick.rates(STORMS)) == (STORMS.rates, STORMS.rates[1:4])
    assert (full.steps(STORMS), quick.steps(STORMS)) == (STORMS.steps, STORMS.steps // 3)
    config = arm_trial(quick, STORMS, SFT, STORMS.skills, 1e-4, 0).settings["config"]
    assert config["train"]["steps"] == quick.steps(STORMS)


@pytest.mark.parametrize("name", [name for name in EXPERIMENTS if name != "cost"])
def test_rates_are_chosen_on_validation_rows_and_results_are_from_test_rows(name, monkeypatch, tmp_path):
    requested = fake_runs(monkeypatch)
    experiment(name)(Lab(tmp_path))
    sweeps = [trial for trial in requested if trial.settings.get("seed") == SWEEP_SEED]
    tests = [trial for trial in requested if trial not in sweeps]
    assert sweeps
    assert tests
    for trial in sweeps:
        assert "heldout" not in json.dumps(trial.settings)
        assert "validation" in trial.settings["config"]["eval"]["prior"]
    for trial in tests:
        assert "validation" not in json.dumps(trial.settings)
        assert "heldout" in trial.settings["config"]["eval"]["prior"]


@pytest.mark.parametrize("name", [name for name in EXPERIMENTS if name != "cost"])
def test_all_variants_with_a_sweep_have_the_same_rates_and_seeds(name, monkeypatch, tmp_path):
    requested = fake_runs(monkeypatch)
    experiment(name)(Lab(tmp_path))
    requested = list({trial.key: trial for trial in requested}.values())  # equal trials run once

    def group(trials, varied):
        """Return the values of the varied setting for each combination of the other settings."""
        groups = {}
        for trial in trials:
            rest = {key: value for key, value in trial.settings.items() if key != varied}
            groups.setdefault(json.dumps(rest, sort_keys=True), []).append(trial.settings[varied])
        return list(groups.values())

    sweeps = [trial for trial in requested if trial.settings.get("seed") == SWEEP_SEED]
    tests = [trial for trial in requested if trial.work == "arm" and trial not in sweeps]
    for world in (lists("small"), lists("medium"), lists(), CHAINS, STORMS):
        own = [t for t in sweeps if t.settings["config"]["model"] == world.settings["model"]]
        rates = [sorted(rates) for rates in group(own, "learning_rate")]
        assert all(one == rates[0] for one in rates)
        assert all(len(one) >= len(world.rates) for one in rates)
    assert all(sorted(seeds) == [0, 1, 2] for seeds in group(tests, "seed"))


def test_base_trial_has_the_configuration_of_the_arms():
    lab, world = Lab(None), lists()
    base, arm = base_trial(lab, world, ["drib"]), arm_trial(lab, world, PLAIN, ["drib"], 1e-4, 0)
    assert base.work == "base"
    assert base.settings["config"] == arm.settings["config"]
