"""The paper's experiments, each a function from a `Lab` to a `Report`; `EXPERIMENTS` has them in order.

Modules are imported when an experiment runs, so that listing them costs nothing.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

EXPERIMENTS: dict[str, tuple[str, str]] = {
    "skill": ("skills", "one new skill: SDFT against SFT, DFT and SFT + re-invoke (Table 5)"),
    "sequential": ("skills", "three skills in turn (Figure 3)"),
    "knowledge": ("knowledge", "new facts from articles (Table 1)"),
    "context": ("knowledge", "what the teacher is shown (Figure 7)"),
    "reasoning": ("reasoning", "answer-only demonstrations and the chain of thought (Table 2)"),
    "teacher": ("ablations", "whose weights teach (Figure 8)"),
    "on-policy": ("ablations", "on-policy against offline, the same teacher (Figure 6)"),
    "divergence": ("ablations", "direction and support of the divergence"),
    "scale": ("scaling", "bases of weak, middling and strong in-context ability (Figure 5)"),
    "pass@k": ("sampling", "gains at k samples"),
    "optimality": ("sampling", "teacher and SFT model: accuracy and distance from the base"),
    "artefacts": ("artefacts", "phrases of the teacher's that leak, and skipped first tokens"),
    "cost": ("cost", "FLOPs and seconds of a step against SFT's"),
}
"""Name -> (module, what it asks)."""


def experiment(name: str) -> Callable[[Any], Any]:
    """The function behind a name, such as `on_policy` of `ablations`."""
    module = importlib.import_module(f"{__name__}.{EXPERIMENTS[name][0]}")
    return getattr(module, name.replace("-", "_").replace("@", "_at_"))
