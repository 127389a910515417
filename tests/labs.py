"""Trials of the lab small enough for tests: two updates of the random model of runs.py on eight rows."""

from sdft_jax.config.overrides import merge
from sdft_jax.studies.lab.lab import Lab, Variant, arm_trial, base_trial
from sdft_jax.studies.lab.worlds import World, lists

SMALL = {
    "data": {"limit": 8},
    "train": {"batch_size": 4},
    "eval": {"limit": 4, "batch_size": 4},
    "sampling": {"max_new_tokens": 12},
}
RATE = 1e-2


def tiny_world(directory) -> World:
    """The list skills, and the model in `directory` as their base."""
    settings = merge(merge(lists().settings, {"model": {"path": str(directory)}}), SMALL)
    return World("tiny", settings, ("blax", "drib"), 2, "mini:")


def tiny_arm(world, method="sft", skills=("blax",), seed=0, rate=RATE, split="heldout", **extra):
    """A training of two updates a stage; SFT compiles fastest."""
    variant = Variant(method, method, extra.pop("changes", {}))
    return arm_trial(Lab(None), world, variant, skills, rate, seed, split, **extra)


def tiny_base(world, skills=("blax",), **extra):
    """A measurement of the base model."""
    return base_trial(Lab(None), world, skills, **extra)
