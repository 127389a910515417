"""Settings shared by all experiments: base models, training data, test questions and numbers of steps.

No setting was tuned for a method: all methods have the same batch size, schedule and number of steps. The
learning rate is chosen separately for each method on validation rows (`lab.sweep`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from sdft_jax.config.methods import method_named
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
"""Settings of the paper's Tables 3 and 4: cosine schedule, 10 warm-up steps, batch size 32, EMA rate 0.02."""


@dataclasses.dataclass(frozen=True)
class World:
    """A base model, its tasks and its prior suite."""

    name: str
    settings: Tree
    skills: tuple[str, ...]
    """Tasks to learn."""
    steps: int
    """The number of updates per task."""
    prefix: str
    """The prefix of its data paths: `PREFIXold`, `PREFIXgeneral`, `PREFIXSKILL`."""
    suites: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Additional questions on the learned tasks: name -> data path."""
    rates: tuple[float, ...] = (3e-6, 1e-5, 3e-5, 1e-4, 3e-4)
    """Learning rates in the sweep of every method."""


def _settings(path: str, prefix: str, **sections: Tree) -> Tree:
    own = {"model": {"path": path}, "data": {"general": f"{prefix}general"}}
    return merge(merge(COMMON, own), sections)


def lists(size: str = "large") -> World:
    """Return the list world: an unknown verb gets the meaning of an operation that the base model knows."""
    path = "mini" if size == "large" else f"mini:lists-{size}"
    settings = _settings(
        path,
        "mini:",
        data={"max_prompt": 64, "max_teacher_prompt": 96},
        sampling={"max_new_tokens": 16},
        eval={"task": "mini"},
    )
    world = World(f"lists-{size}", settings, ("blax", "drib", "glov"), 100, "mini:")
    # Smaller models need larger rates: with the large model's rates, SFT's best was the highest of them.
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
"""Reasoning: chains of operations with a written chain of thought; the expert gives only the answer."""

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
"""Knowledge: facts about twelve new storms, from articles; the test uses phrasings absent from training."""


def configuration(
    world: World, skills: tuple[str, ...], split: str, method: str, steps: int, changes: Tree
) -> Tree:
    """Return a complete configuration as nested keys.

    Args:
        world: base model and settings.
        skills: stages, in order.
        split: split of the tasks and of the prior suite to evaluate on: `validation` or `heldout`.
        method: training method; `cpt` (continual pre-training) reads articles instead of questions.
        steps: number of updates per stage.
        changes: settings that the experiment varies.
    """
    source = "articles" if method_named(method).target == "text" else None
    stages = tuple(
        {
            "name": skill,
            "data": {"path": f"{world.prefix}{source or skill}:train"},
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
