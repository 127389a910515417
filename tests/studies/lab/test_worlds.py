"""Worlds: configurations that the library accepts, and rows that are apart where they must be."""

import functools
import itertools

import pytest

from sdft_jax.config import from_dict
from sdft_jax.config.methods import METHODS
from sdft_jax.config.overrides import merge
from sdft_jax.continual.stages import stages_of
from sdft_jax.data import read_rows
from sdft_jax.studies.lab.worlds import CHAINS, STORMS, configuration, lists

WORLDS = (lists("small"), lists("medium"), lists(), CHAINS, STORMS)
SPLITS = ("validation", "heldout")


@functools.cache
def prompts(path):
    return {row["prompt"] for row in read_rows(path, "train")}


@pytest.mark.parametrize("world", WORLDS, ids=lambda world: world.name)
def test_the_library_accepts_every_configuration(world):
    for skills, split, method in itertools.product([(world.skills[0],), world.skills], SPLITS, METHODS):
        tree = configuration(world, skills, split, method, 7, {"train": {"method": method}})
        config = from_dict(tree, "lab")
        stages = stages_of(config)
        assert tuple(stage.name for stage in stages) == skills
        assert {stage.config.train.steps for stage in stages} == {7}
        for stage in stages:
            assert stage.config.data.path.endswith(":train")
            assert stage.config.eval.path == f"{world.prefix}{stage.name}:{split}"
            assert config.eval.prior == f"{world.prefix}old:{split}"
            assert ("articles" in stage.config.data.path) == (method == "cpt")


def test_what_an_experiment_changes_stands_above_all_else():
    changes = {"train": {"steps": 3}, "model": {"path": "elsewhere"}, "data": {"limit": 5}}
    config = configuration(STORMS, STORMS.skills, "heldout", "sdft", 9, changes)
    assert config["train"]["steps"] == 3
    assert config["train"]["batch_size"] == STORMS.settings["train"]["batch_size"]
    assert config["model"] == merge(STORMS.settings["model"], {"path": "elsewhere"})
    assert config["data"]["limit"] == 5
    assert config["continual"]["suites"] == ({"name": "ood", "path": "mini:storms:ood:heldout"},)


@pytest.mark.parametrize("world", WORLDS[2:], ids=lambda world: world.name)
def test_rows_of_different_use_have_different_prompts(world):
    taught = {name: prompts(f"{world.prefix}{name}:train") for name in world.skills}
    asked = {
        f"{name} {split}": prompts(f"{world.prefix}{name}:{split}")
        for name in world.skills
        for split in SPLITS
    } | {
        f"{name} {split}": prompts(f"{path}:{split}")
        for name, path in world.suites.items()
        for split in SPLITS
    }
    prior = {split: prompts(f"{world.prefix}old:{split}") for split in SPLITS}
    general = prompts(world.settings["data"]["general"])
    assert all(map(len, [*taught.values(), *asked.values(), *prior.values(), general]))

    assert not prior["validation"] & prior["heldout"]
    for name in world.skills:
        assert not asked[f"{name} validation"] & asked[f"{name} heldout"]
    for rows, questions in itertools.product(taught.values(), [*asked.values(), *prior.values()]):
        assert not rows & questions
    for questions in [*taught.values(), *asked.values()]:
        assert not general & questions
        for old in prior.values():
            assert not old & questions
    for old in prior.values():
        assert not general & old


def test_the_test_of_one_skill_is_not_what_another_rate_was_chosen_on():
    for world in WORLDS[2:]:
        for first, second in itertools.product(world.skills, repeat=2):
            chosen_on = prompts(f"{world.prefix}{first}:validation")
            assert not chosen_on & prompts(f"{world.prefix}{second}:heldout")
