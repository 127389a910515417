"""What SDFT costs against SFT: FLOPs of the compiled step, and seconds."""

from __future__ import annotations

from typing import Any

from sdft_jax.figures import Bar, plot_bars
from sdft_jax.lab.lab import Lab
from sdft_jax.lab.pool import run_trials
from sdft_jax.lab.reports import Check, Report
from sdft_jax.lab.trials import Trial
from sdft_jax.lab.worlds import COMMON
from sdft_jax.overrides import merge
from sdft_jax.statistics import mean_interval

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
METHODS = ("sft", "dft", "sdft", "offline_kl", "reinvoke")
PAPER = {"FLOPs": 2.5, "seconds": 4.0}


def cost(lab: Lab) -> Report:
    """FLOPs and seconds of a step by each method, relative to SFT's."""
    names = list(SETTINGS)[: 1 if lab.quick else None]
    keys = [(name, method) for name in names for method in METHODS]
    # One after the other: two at a time would share the memory's bandwidth.
    results = run_trials([_trial(name, method) for name, method in keys], lab.directory, 1, "cost")
    found = dict(zip(keys, results, strict=True))
    rows = [
        {
            "model, prompt + completion": name,
            "method": method,
            "GFLOP a step": f"{found[name, method]['flops'] / 1e9:.1f}",
            "seconds a step": f"{found[name, method]['seconds']:.3f}",
            "FLOPs, of SFT's": f"{_ratio(found, name, method, 'flops'):.2f}",
            "seconds, of SFT's": f"{_ratio(found, name, method, 'seconds'):.2f}",
        }
        for name, method in keys
    ]
    largest = names[-1]
    flops, seconds = (_ratio(found, largest, "sdft", unit) for unit in ("flops", "seconds"))
    checks = [
        Check(
            "SDFT needs at most 3 times SFT's FLOPs", mean_interval([3 - flops]), "2.5 times", "times", 1.0
        ),
        Check(
            "SDFT takes at most 4 times SFT's seconds", mean_interval([4 - seconds]), "4 times", "times", 1.0
        ),
    ]
    bars = [
        Bar(
            f"{method}, {unit}",
            name,
            _ratio(found, name, method, key),
            None,
            PAPER[unit] if method == "sdft" else None,
        )
        for method in METHODS[1:]
        for unit, key in (("FLOPs", "flops"), ("seconds", "seconds"))
        for name in names
    ]
    return Report(
        "cost",
        "What it costs",
        "about 2.5 times the FLOPs and 4 times the wall-clock of SFT, with a separate inference engine "
        "(section 5).",
        checks,
        rows,
        lambda path, caption: plot_bars(bars, path, caption, y_label="times SFT's"),
        (),
        [
            "Matrix products of the compiled program, loops multiplied by their trips (SFT on the same "
            "prompts with "
            "demonstrations of the same length; reinvoke: its costlier branch). Seconds: median of five "
            "steps, one run on "
            "this machine; a run has no interval, so that the checks cannot be told by one."
        ],
    )


def _ratio(found: dict[tuple[str, str], dict[str, Any]], name: str, method: str, key: str) -> float:
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
