"""The paper's experiments: functions from a `Lab` to a `Report`, listed in order in `EXPERIMENTS`.

An experiment's module is imported when it runs, which keeps the list cheap to import.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

EXPERIMENTS: dict[str, tuple[str, str]] = {
    "skill": ("skills", "one new skill: SDFT against SFT, DFT and SFT + re-invoke (Table 5)"),
    "sequential": ("skills", "three skills in sequence (Figure 3)"),
    "knowledge": ("knowledge", "new facts from articles (Table 1)"),
    "context": ("knowledge", "article, answer or both in the teacher's context (Figure 7)"),
    "reasoning": ("reasoning", "answer-only demonstrations and the chain of thought (Table 2)"),
    "teacher": ("ablations", "EMA, frozen, live and periodic teacher weights (Figure 8)"),
    "on-policy": ("ablations", "on-policy against offline, from the same teacher (Figure 6)"),
    "divergence": ("ablations", "direction and support of the divergence"),
    "optimizers": ("optimizers", "AdamW with fewer bits, Lion and Adafactor, each at its own rate"),
    "scale": ("scaling", "base models with weak, medium and strong in-context ability (Figure 5)"),
    "pass@k": ("sampling", "accuracy with k samples per prompt"),
    "optimality": ("sampling", "teacher and SFT model: accuracy and distance from the base model"),
    "artefacts": (
        "artefacts",
        "teacher phrases that leak into the student, and loss masks on the first tokens",
    ),
    "adapters": ("adapters", "LoRA against full fine-tuning: learning against forgetting"),
    "cost": ("cost", "FLOPs and seconds per step, relative to SFT"),
}
"""Name -> (module, description)."""


def experiment(name: str) -> Callable[[Any], Any]:
    """Return the function of the experiment `name`, such as `ablations.on_policy` for `on-policy`."""
    module = importlib.import_module(f"{__name__}.{EXPERIMENTS[name][0]}")
    return getattr(module, name.replace("-", "_").replace("@", "_at_"))
