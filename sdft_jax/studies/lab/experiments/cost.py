"""What SDFT costs against SFT: FLOPs of the compiled step, and seconds."""

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
"""Name -> shapes; of the second the teacher reads twice the student's prompt, as in tool use."""
METHODS = {
    "sft": "SFT",
    "dft": "DFT",
    "sdft": "SDFT",
    "offline_kl": "offline KL",
    "reinvoke": "SFT + re-invoke",
}
UNITS = {"FLOPs": "flops", "seconds": "seconds"}
PAPER = {"FLOPs": 2.5, "seconds": 4.0}
"""Of SDFT, in multiples of SFT's."""
Found = Mapping[tuple[str, str], Mapping[str, Any]]


def cost(lab: Lab) -> Report:
    """FLOPs and seconds of a step by each method, relative to SFT's."""
    names = list(SETTINGS)[: 1 if lab.quick else None]
    keys = [(name, method) for name in names for method in METHODS]
    # One after the other: two at a time would share the memory's bandwidth.
    results = run_trials([_trial(name, method) for name, method in keys], lab.directory, 1, "cost")
    found = dict(zip(keys, results, strict=True))
    flops, seconds = (_ratio(found, names[-1], "sdft", unit) for unit in UNITS.values())
    # FLOPs are counted, so that there is nothing to be uncertain of.
    checks = [
        Check(claim, estimate, f"{PAPER[unit]:g} times", "times to spare", 1.0)
        for claim, estimate, unit in (
            ("SDFT needs at most 3 times SFT's FLOPs", Estimate(3 - flops, 0.0), "FLOPs"),
            ("SDFT takes at most 4 times SFT's seconds", Estimate(4 - seconds, None), "seconds"),
        )
    ]
    return Report(
        "cost",
        "What it costs",
        "SDFT takes about 2.5 times the FLOPs and 4 times the wall-clock of SFT.",
        checks,
        [_row(found, name, method) for name, method in keys],
        lambda path, caption: plot_bars(_bars(found, names), path, caption, y_label="times SFT's"),
        (),
        [
            "FLOPs: matrix products of the compiled program, loops multiplied by their trips; they are "
            "counted, so without an interval. SFT has the same prompts and demonstrations as long as the "
            "samples; SFT + re-invoke is counted by its costlier branch. Seconds: median of five steps in "
            f"one run, which cannot tell for other machines. The checks are on {names[-1]}."
        ],
    )


def _row(found: Found, name: str, method: str) -> dict[str, str]:
    return {
        "model, prompt + completion": name,
        "method": METHODS[method],
        "GFLOP a step": f"{found[name, method]['flops'] / 1e9:.1f}",
        "seconds a step": f"{found[name, method]['seconds']:.3f}",
        "FLOPs, of SFT's": f"{_ratio(found, name, method, 'flops'):.2f}",
        "seconds, of SFT's": f"{_ratio(found, name, method, 'seconds'):.2f}",
    }


def _bars(found: Found, names: Sequence[str]) -> list[Bar]:
    return [
        Bar(
            label,
            f"{unit}: {name}",
            _ratio(found, name, method, key),
            paper=PAPER[unit] if method == "sdft" else None,
        )
        for unit, key in UNITS.items()
        for name in names
        for method, label in METHODS.items()
        if method != "sft"
    ]


def _ratio(found: Found, name: str, method: str, key: str) -> float:
    return found[name, method][key] / found[name, "sft"][key]


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
