"""Made-up results of trials, so that experiments can be tested without training.

They are lawful: every method has a best learning rate, seeds differ a little, and what a variant changes
moves its numbers, so that verdicts are known beforehand.
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
"""Of the base's."""
COSTS = {"sft": 1.0, "dft": 1.0, "sdft": 2.4, "offline_kl": 2.4, "reinvoke": 2.2}


def fake_runs(monkeypatch, sdft_wins=True):
    """Put made-up results in place of training, wherever the lab looks for it; returns the trials it sees."""
    seen = []

    def run_trials(trials, directory, workers, description):
        seen.extend(trials)
        # What was stored was written as JSON: lists for tuples, text for keys.
        return [json.loads(json.dumps(result_of(trial, sdft_wins))) for trial in trials]

    for module in (lab, cost):
        monkeypatch.setattr(module, "run_trials", run_trials)
    return seen


def result_of(trial, sdft_wins=True):
    settings = trial.settings
    config = settings["config"]
    if trial.work == "cost":
        share = COSTS[config["train"]["method"]]
        return {"flops": 1e9 * share, "seconds": 0.1 * share**1.5}
    names = [stage["name"] for stage in config["continual"]["stages"]]
    if trial.work == "base":
        found = {"measured": {role: _base(config, names, role) for role in ("student", "teacher")}}
        return found | _verdicts(settings, 0.1)
    new, prior = strength(settings, sdft_wins)
    method = settings["method"]
    stages = [names[-1]] if method == "joint" else names
    measured = [_measured(settings, names, names.index(stage), new, prior) for stage in stages]
    found = {"measured": measured, "curve": [], **_verdicts(settings, new)}
    if config["train"].get("eval_every"):
        found["curve"] = _curve(config, names, measured)
    return found


def strength(settings, sdft_wins):
    """(new, prior) accuracy of a variant at a learning rate with a seed."""
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
    # The prior skills suffer from every step upwards, so that a tie goes to the lower rate.
    return new - 0.1 * distance**2 + noise, prior - 0.02 * distance + noise


def _measured(settings, names, stage, new, prior):
    """After that stage: its own task and those before, which fade by what the method forgets."""
    config, method = settings["config"], settings["method"]
    kept = 1.0 if method == "joint" else 0.98 if prior > 0.8 else 0.3
    length = 12.0 * LENGTHS.get(method, 1.0)
    found = {}
    for number, name in enumerate(names):
        accuracy = new * kept ** (stage - number) if number <= stage else 0.05
        found[name] = _task(config, name, accuracy, 1.5 - prior, length, settings)
    for suite in config["continual"].get("suites", ()):
        found[suite["name"]] = _plain(0.9 * new, 1.0, length)
    return found | {PRIOR: _plain(prior, 2 * (1 - prior), 8.0)}


def _base(config, names, role):
    shown = role == "teacher"
    ceiling = {"mini:lists-small": 0.5, "mini:lists-medium": 0.75}.get(config["model"]["path"], 0.98)
    accuracy, kl = (ceiling, 0.7) if shown else (0.05, 0.0)
    found = {name: _task(config, name, accuracy, kl, 12.0) for name in names}
    for suite in config["continual"].get("suites", ()):
        found[suite["name"]] = _plain(0.95 if shown else 0.02, 0.5, 12.0)
    return found if shown else found | {PRIOR: _plain(0.99, 0.0, 8.0)}


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
    """Answers to the test; half of the wrong ones to pairs have one detail of two right."""
    rows = _questions()
    order = sorted(range(len(rows)), key=lambda i: (i * 89) % len(rows))  # spread over both kinds
    right = set(order[: round(accuracy * len(rows))])
    said = [
        row["answer"]
        if i in right
        else row["answer"].split(" , ")[0]
        if row["kind"] == "pair" and i % 2
        else "no"
        for i, row in enumerate(rows)
    ]
    completions = [
        f"{storms.CITATION} {answer}" if i < cited * len(rows) else answer for i, answer in enumerate(said)
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
    """Each task halfway through and at the end of every stage."""
    steps, every, rows = config["train"]["steps"], config["train"]["eval_every"], []
    before = {name: 0.05 for name in names}
    for number, (stage, after) in enumerate(zip(names, measured, strict=True)):
        now = {name: after[name]["accuracy"] for name in names}
        for step in (0, every, steps):
            share = step / steps
            tasks = {name: (1 - share) * before[name] + share * now[name] for name in names}
            rows.append({"step": number * steps + step, "stage": stage, "tasks": tasks})
        before = now
    return rows


def _verdicts(settings, accuracy):
    drawn = settings.get("pass_at_k")
    if not drawn:
        return {}
    right = [round(drawn["n"] * accuracy * (prompt % 4) / 3) for prompt in range(drawn["prompts"])]
    return {"verdicts": [[1] * min(n, drawn["n"]) + [0] * (drawn["n"] - n) for n in right]}
