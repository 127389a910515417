"""Lab trials small enough for tests: two updates per stage, on eight rows, of the random model of runs.py."""

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
    """Return a world with the list skills and the model in `directory` as the base model."""
    settings = merge(merge(lists().settings, {"model": {"path": str(directory)}}), SMALL)
    return World("tiny", settings, ("blax", "drib"), 2, "mini:")


def tiny_arm(world, method="sft", skills=("blax",), seed=0, rate=RATE, split="heldout", **extra):
    """Return a training trial with two updates per stage; SFT is the default because it compiles fastest."""
    variant = Variant(method, method, extra.pop("changes", {}))
    return arm_trial(Lab(None), world, variant, skills, rate, seed, split, **extra)


def tiny_base(world, skills=("blax",), **extra):
    """Return a trial that measures the base model."""
    return base_trial(Lab(None), world, skills, **extra)
