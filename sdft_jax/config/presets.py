"""Presets: the defaults that a YAML file and overrides change."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

PRESETS: Mapping[str, Mapping[str, Any]] = {
    # The recommended settings: reverse KL (the paper's equations 1-2), float32 EMA, own teacher limit.
    # They are the defaults of the dataclasses in settings.py.
    "sdft": {},
    # The released code's main.py, as its forks agree on it: forward KL, 3 tokens skipped, sequence mean,
    # importance ratio averaged per sequence and capped at 2, everything in bfloat16, EMA included. One
    # difference: AdamW computes in float32 and rounds its moments stochastically, since b2 = 0.999 is 1 in
    # bfloat16.
    "official": {
        "divergence": {"alpha": 0.0},
        "objective": {"skip_tokens": 3, "aggregation": "sequence", "importance": "sequence"},
        "teacher": {"schedule": "ema", "rate": 0.01, "dtype": "bfloat16"},
        "model": {"param_dtype": "bfloat16"},
        "optimizer": {"learning_rate": 2e-5, "warmup": 0.1, "clip": 1.0},
        "train": {"batch_size": 32, "epochs": 1},
        "data": {"max_prompt": 1024, "max_teacher_prompt": 1024},
        "sampling": {"max_new_tokens": 1024},
    },
}
