"""The settings that every experiment shares: what is trained on, what is examined, for how long.

Nothing here was tuned for a method: batch, schedule and steps are the same for all, and the learning rate is
chosen for each on validation rows (`lab.sweep`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from sdft_jax.config.overrides import merge

Tree = Mapping[str, Any]

COMMON: Tree = {
    "model": {"compute_dtype": "float32", "remat": "none"},
    "optimizer": {"schedule": "cosine", "warmup": 10},
    "teacher": {"rate": 0.02},
    "train": {"batch_size": 32, "save_every": 0, "rollouts_every": 0, "phases_every": 0},
    "checkpoint": {"keep_last": 1, "keep_best": 0},
    "mesh": {"fsdp": 1},
    "eval": {"batch_size": 128},
}
"""As the paper's Tables 3 and 4 have them: cosine, 10 warm-up steps, batch 32, EMA 0.02."""


@dataclasses.dataclass(frozen=True)
class World:
    """A base model, its tasks and its prior suite."""

    name: str
    settings: Tree
    skills: tuple[str, ...]
    """Tasks to be taught."""
    steps: int
    """Updates for each."""
    prefix: str
    """Of its data paths: `PREFIXold`, `PREFIXgeneral`, `PREFIXSKILL`."""
    suites: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Further questions on what was taught: name -> data path."""
    rates: tuple[float, ...] = (3e-6, 1e-5, 3e-5, 1e-4, 3e-4)
    """Learning rates that every method has to choose from."""


def _settings(path: str, prefix: str, **sections: Tree) -> Tree:
    own = {"model": {"path": path}, "data": {"general": f"{prefix}general"}}
    return merge(merge(COMMON, own), sections)


def lists(size: str = "large") -> World:
    """List skills: a verb without a meaning gets that of an operation which the base knows by name."""
    path = "mini" if size == "large" else f"mini:lists-{size}"
    settings = _settings(
        path,
        "mini:",
        data={"max_prompt": 64, "max_teacher_prompt": 96},
        sampling={"max_new_tokens": 16},
        eval={"task": "mini"},
    )
    world = World(f"lists-{size}", settings, ("blax", "drib", "glov"), 100, "mini:")
    # Smaller models want larger steps: with the rates of the large one, SFT's best was the last that it had.
    return world if size == "large" else dataclasses.replace(world, rates=STORMS.rates)


CHAINS = World(
    "chains",
    _settings(
        "mini:chains",
        "mini:chains:",
        data={"max_prompt": 64, "max_teacher_prompt": 96},
        sampling={"max_new_tokens": 40},
        eval={"task": "mini"},
    ),
    ("blax", "drib", "glov"),
    100,
    "mini:chains:",
    rates=(1e-5, 3e-5, 1e-4, 3e-4, 1e-3),
)
"""Reasoning: chains of operations with a written chain of thought; the expert shows the answer alone."""

STORMS = World(
    "storms",
    _settings(
        "mini:storms",
        "mini:storms:",
        data={"max_prompt": 64, "max_teacher_prompt": 96, "context": "both"},
        sampling={"max_new_tokens": 24},
        eval={"task": "storms"},
    ),
    ("questions",),
    200,
    "mini:storms:",
    {"ood": "mini:storms:ood"},
    (3e-5, 1e-4, 3e-4, 1e-3, 3e-3),
)
"""Knowledge: facts about twelve new storms from articles; the test asks in words that training never used."""


def configuration(
    world: World, skills: tuple[str, ...], split: str, method: str, steps: int, changes: Tree
) -> Tree:
    """A whole configuration as nested keys.

    Args:
        world: base model and settings.
        skills: stages, in order.
        split: rows that are examined, `validation` or `heldout`; of the tasks and of the prior suite.
        method: continual pre-training reads articles instead of questions.
        steps: updates of each stage.
        changes: what the experiment varies.
    """
    read = "articles" if method == "cpt" else None
    stages = tuple(
        {
            "name": skill,
            "data": {"path": f"{world.prefix}{read or skill}:train"},
            "eval": {"path": f"{world.prefix}{skill}:{split}"},
        }
        for skill in skills
    )
    suites = tuple({"name": name, "path": f"{path}:{split}"} for name, path in world.suites.items())
    own: Tree = {
        "train": {"steps": steps},
        "eval": {"prior": f"{world.prefix}old:{split}"},
        "continual": {"stages": stages, "suites": suites},
    }
    return merge(merge(world.settings, own), changes)
