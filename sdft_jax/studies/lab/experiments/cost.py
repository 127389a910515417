"""Cost of SDFT relative to SFT: FLOPs of the compiled step, and seconds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sdft_jax.config.overrides import merge
from sdft_jax.reporting.charts import Bar, plot_bars
from sdft_jax.reporting.statistics import Estimate
from sdft_jax.studies.lab.lab import Lab
from sdft_jax.studies.lab.pool import run_trials
from sdft_jax.studies.lab.reports import Check, Report
from sdft_jax.studies.lab.trials import Trial
from sdft_jax.studies.lab.worlds import COMMON

MINI = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "vocab_size": 155,
}
WIDE = {
    "hidden_size": 512,
    "intermediate_size": 1536,
    "num_hidden_layers": 6,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "vocab_size": 8192,
}
SETTINGS: dict[str, dict[str, Any]] = {
    "0.6 M, 16 + 16 tokens": {
        "model": MINI,
        "prompt": 16,
        "teacher_prompt": 32,
        "completion": 16,
        "rows": 32,
    },
    "25 M, 128 + 128 tokens": {
        "model": WIDE,
        "prompt": 128,
        "teacher_prompt": 256,
        "completion": 128,
        "rows": 8,
    },
}
"""Name -> shapes; in the second, the teacher's prompt is twice the student's, as in tool use."""
LABELS = {
    "sft": "SFT",
    "dft": "DFT",
    "sdft": "SDFT",
    "offline_kl": "offline KL",
    "reinvoke": "SFT + re-invoke",
}
"""Method -> label; SFT, the first, is the unit."""
UNITS = {"FLOPs": "flops", "seconds": "seconds"}
PAPER = {("sdft", "FLOPs"): 2.5, ("sdft", "seconds"): 4.0}
"""The paper's values, in multiples of SFT's."""
Results = Mapping[tuple[str, str], Mapping[str, Any]]


def cost(lab: Lab) -> Report:
    """Measure the FLOPs and seconds of one step of each method, relative to SFT."""
    names = list(SETTINGS)[: 1 if lab.quick else None]
    keys = [(name, method) for name in names for method in LABELS]
    # One worker: parallel measurements would compete for memory bandwidth.
    trials = [_trial(name, method) for name, method in keys]
    results = dict(zip(keys, run_trials(trials, lab.directory, 1, "cost"), strict=True))
    flops, seconds = (_ratio(results, names[-1], "sdft", unit) for unit in UNITS.values())
    # FLOPs are counted, so their half-width is 0.
    checks = [
        Check(claim, estimate, f"{PAPER['sdft', unit]:g} times", f"times SFT's {unit} to spare", 1.0)
        for claim, estimate, unit in (
            ("SDFT needs at most 3 times SFT's FLOPs", Estimate(3 - flops, 0.0), "FLOPs"),
            ("SDFT takes at most 4 times SFT's seconds", Estimate(4 - seconds, None), "seconds"),
        )
    ]
    return Report(
        "cost",
        "Cost per step",
        "SDFT takes about 2.5 times the FLOPs and 4 times the wall-clock time of SFT.",
        checks,
        [_row(results, name, method) for name, method in keys],
        lambda path, caption: plot_bars(_bars(results, names), path, caption, y_label="times SFT's"),
        (),
        [
            "FLOPs are those of the matrix products in the compiled program, with loops multiplied by their "
            "trip counts. They are counted, not measured, so they have no interval. SFT has the same "
            "prompts, and demonstrations as long as the samples. SFT + re-invoke is counted by its more "
            "expensive branch. Seconds are the median of five steps in one run, which supports no "
            f"conclusion about other machines. The checks use {names[-1]}."
        ],
    )


def _row(results: Results, name: str, method: str) -> dict[str, str]:
    return {
        "model, prompt + completion": name,
        "method": LABELS[method],
        "GFLOP a step": f"{results[name, method]['flops'] / 1e9:.1f}",
        "seconds a step": f"{results[name, method]['seconds']:.3f}",
        "FLOPs, of SFT's": f"{_ratio(results, name, method, 'flops'):.2f}",
        "seconds, of SFT's": f"{_ratio(results, name, method, 'seconds'):.2f}",
    }


def _bars(results: Results, names: Sequence[str]) -> list[Bar]:
    return [
        Bar(
            label,
            f"{unit}: {name}",
            _ratio(results, name, method, key),
            paper=PAPER.get((method, unit)),
        )
        for unit, key in UNITS.items()
        for name in names
        for method, label in list(LABELS.items())[1:]
    ]


def _ratio(results: Results, name: str, method: str, key: str) -> float:
    return results[name, method][key] / results[name, "sft"][key]


def _trial(name: str, method: str) -> Trial:
    shapes = SETTINGS[name]
    model = {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "rope_theta": 1e4,
        "max_position_embeddings": 1024,
        "tie_word_embeddings": False,
    } | shapes["model"]
    own = {
        "train": {"method": method, "batch_size": shapes["rows"]},
        "sampling": {"max_new_tokens": shapes["completion"]},
        "data": {"general": "mini:general"},
    }
    lengths = {key: shapes[key] for key in ("prompt", "teacher_prompt")}
    return Trial(
        "cost", {"config": merge(COMMON, own), "model": model, **lengths}, f"cost of {method}, {name}"
    )
