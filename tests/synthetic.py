"""Synthetic results of trials, to test experiments without training.

The results follow fixed rules: every method has a best learning rate, seeds differ slightly, and the settings
of a variant change its numbers. The verdicts are therefore known in advance.
"""

import functools
import json
import math

from sdft_jax.continual.stages import PRIOR
from sdft_jax.mini import storms
from sdft_jax.studies.lab import lab
from sdft_jax.studies.lab.experiments import cost

ITEMS = 200
BEST_RATE = 3e-5
NEW = {
    "sdft": 0.9,
    "sft": 0.8,
    "dft": 0.7,
    "reinvoke": 0.78,
    "cpt": 0.2,
    "offline_kl": 0.82,
    "offline": 0.75,
    "joint": 0.85,
}
PRIORS = {
    "sdft": 0.95,
    "sft": 0.6,
    "dft": 0.75,
    "reinvoke": 0.85,
    "cpt": 0.5,
    "offline_kl": 0.85,
    "offline": 0.7,
    "joint": 0.6,
}
LENGTHS = {"sdft": 0.95, "sft": 0.4}
"""Answer lengths, relative to the base model's."""
COSTS = {"sft": 1.0, "dft": 1.0, "sdft": 2.4, "offline_kl": 2.4, "reinvoke": 2.2}


def fake_runs(monkeypatch, sdft_wins=True):
    """Make the lab use synthetic results instead of training; return the list of trials that it requests."""
    requested = []

    def run_trials(trials, directory, workers, description):
        requested.extend(trials)
        # Stored results are JSON: tuples become lists, and keys become strings.
        return [json.loads(json.dumps(result_of(trial, sdft_wins))) for trial in trials]

    for module in (lab, cost):
        monkeypatch.setattr(module, "run_trials", run_trials)
    return requested


def result_of(trial, sdft_wins=True):
    settings = trial.settings
    config = settings["config"]
    if trial.work == "cost":
        share = COSTS[config["train"]["method"]]
        return {"flops": 1e9 * share, "seconds": 0.1 * share**1.5}
    names = [stage["name"] for stage in config["continual"]["stages"]]
    if trial.work == "base":
        result = {"measured": {role: _base(config, names, role) for role in ("student", "teacher")}}
        return result | _verdicts(settings, 0.1)
    new, prior = strength(settings, sdft_wins)
    method = settings["method"]
    stages = [names[-1]] if method == "joint" else names
    measured = [_measured(settings, names, names.index(stage), new, prior) for stage in stages]
    result = {"measured": measured, "curve": [], **_verdicts(settings, new)}
    if config["train"].get("eval_every"):
        result["curve"] = _curve(config, names, measured)
    return result


def strength(settings, sdft_wins):
    """Return the (new, prior) accuracy for a trial's variant, learning rate and seed."""
    method, config = settings["method"], settings["config"]
    new, prior = NEW[method], PRIORS[method]
    if method == "sdft":
        teacher, divergence = config["teacher"], config.get("divergence", {})
        new -= {"live": 0.3, "frozen": 0.05, "periodic": 0.01}.get(teacher.get("schedule"), 0)
        new -= 0.01 * abs(math.log(teacher["rate"] / 0.02))
        new -= {"text": 0.2, "demonstration": 0.5}.get(config["data"].get("context"), 0)
        new -= {"sampled": 0.1, "student": 0.02, "teacher": 0.02}.get(divergence.get("support"), 0)
        new -= 0.05 * ("small" in config["model"]["path"]) + 0.001 * config.get("objective", {}).get(
            "skip_tokens", 0
        )
        if not sdft_wins:
            new, prior = new - 0.35, prior - 0.5
        elif "small" in config["model"]["path"]:
            new -= 0.15
    distance = math.log10(settings["learning_rate"] / BEST_RATE)
    noise = (-0.004, 0.005, 0.0)[settings["seed"] % 3]
    # Prior accuracy falls with the rate, so a tie goes to the lower rate.
    return new - 0.1 * distance**2 + noise, prior - 0.02 * distance + noise


def _measured(settings, names, stage, new, prior):
    """Return the accuracies after a stage; those of earlier tasks fall by what the method forgets."""
    config, method = settings["config"], settings["method"]
    retained = 1.0 if method == "joint" else 0.98 if prior > 0.8 else 0.3
    length = 12.0 * LENGTHS.get(method, 1.0)
    measured = {}
    for number, name in enumerate(names):
        accuracy = new * retained ** (stage - number) if number <= stage else 0.05
        measured[name] = _task(config, name, accuracy, 1.5 - prior, length, settings)
    for suite in config["continual"].get("suites", ()):
        measured[suite["name"]] = _plain(0.9 * new, 1.0, length)
    return measured | {PRIOR: _plain(prior, 2 * (1 - prior), 8.0)}


def _base(config, names, role):
    teacher = role == "teacher"
    ceiling = {"mini:lists-small": 0.5, "mini:lists-medium": 0.75}.get(config["model"]["path"], 0.98)
    accuracy, kl = (ceiling, 0.7) if teacher else (0.05, 0.0)
    measured = {name: _task(config, name, accuracy, kl, 12.0) for name in names}
    for suite in config["continual"].get("suites", ()):
        measured[suite["name"]] = _plain(0.95 if teacher else 0.02, 0.5, 12.0)
    return measured if teacher else measured | {PRIOR: _plain(0.99, 0.0, 8.0)}


def _task(config, name, accuracy, kl, length, settings=None):
    if config["eval"]["task"] == "storms":
        skipped = config.get("objective", {}).get("skip_tokens", 0)
        trained = settings is not None and settings["method"] == "sdft"
        return _storms(accuracy, kl, length, 0.4 / (1 + skipped) if trained else 0.0)
    return _plain(accuracy, kl, length)


def _plain(accuracy, kl, length):
    right = round(accuracy * ITEMS)
    correct = [1] * right + [0] * (ITEMS - right)
    return {
        "accuracy": right / ITEMS,
        "length": length,
        "kl_to_base": kl,
        "correct": correct,
        "completions": [""] * ITEMS,
    }


@functools.cache
def _questions():
    return [row for kind in ("direct", "pair") for row in storms.heldout(kind)]


def _storms(accuracy, kl, length, cited):
    """Return answers to the test; half of the wrong answers to pairs have one of two details right."""
    rows = _questions()
    order = sorted(range(len(rows)), key=lambda i: (i * 89) % len(rows))  # mixes both kinds
    right = set(order[: round(accuracy * len(rows))])
    answers = [
        row["answer"]
        if i in right
        else row["answer"].split(" , ")[0]
        if row["kind"] == "pair" and i % 2
        else "no"
        for i, row in enumerate(rows)
    ]
    completions = [
        f"{storms.CITATION} {answer}" if i < cited * len(rows) else answer for i, answer in enumerate(answers)
    ]
    correct = [int(storms.score_strict(text, row)) for text, row in zip(completions, rows, strict=True)]
    return {
        "accuracy": sum(correct) / len(correct),
        "length": length,
        "kl_to_base": kl,
        "correct": correct,
        "completions": completions,
    }


def _curve(config, names, measured):
    """Return the evaluations at the start, halfway through and at the end of every stage."""
    steps, every, rows = config["train"]["steps"], config["train"]["eval_every"], []
    before = {name: 0.05 for name in names}
    for number, (stage, after) in enumerate(zip(names, measured, strict=True)):
        now = {name: after[name]["accuracy"] for name in names}
        for step in (0, every, steps):
            share = step / steps
            tasks = {name: (1 - share) * before[name] + share * now[name] for name in names}
            prior, kl = 0.99 + share * (after[PRIOR]["accuracy"] - 0.99), share * after[PRIOR]["kl_to_base"]
            distance = {"kl_to_base": kl} if step else {}
            rows.append(
                {"step": number * steps + step, "stage": stage, "tasks": tasks, PRIOR: prior, **distance}
            )
        before = now
    return rows


def _verdicts(settings, accuracy):
    sampling = settings.get("pass_at_k")
    if not sampling:
        return {}
    n = sampling["n"]
    right = [round(n * accuracy * (prompt % 4) / 3) for prompt in range(sampling["prompts"])]
    return {"verdicts": [[1] * min(count, n) + [0] * (n - count) for count in right]}
