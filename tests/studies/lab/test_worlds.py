"""Tests of worlds: valid configurations, and no prompt in common between rows of different use."""

import functools
import itertools
import typing

import pytest

from sdft_jax.config import from_dict
from sdft_jax.config.methods import MethodName
from sdft_jax.config.overrides import merge
from sdft_jax.continual.stages import stages_of
from sdft_jax.data import read_rows
from sdft_jax.studies.lab.worlds import CHAINS, STORMS, configuration, lists

WORLDS = (lists("small"), lists("medium"), lists(), CHAINS, STORMS)
SPLITS = ("validation", "heldout")
METHODS = typing.get_args(MethodName)


@functools.cache
def prompts(path):
    return {row["prompt"] for row in read_rows(path, "train")}


@pytest.mark.parametrize("world", WORLDS, ids=lambda world: world.name)
def test_every_configuration_is_valid(world):
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


def test_changes_of_an_experiment_override_other_settings():
    changes = {"train": {"steps": 3}, "model": {"path": "elsewhere"}, "data": {"limit": 5}}
    config = configuration(STORMS, STORMS.skills, "heldout", "sdft", 9, changes)
    assert config["train"]["steps"] == 3
    assert config["train"]["batch_size"] == STORMS.settings["train"]["batch_size"]
    assert config["model"] == merge(STORMS.settings["model"], {"path": "elsewhere"})
    assert config["data"]["limit"] == 5
    assert config["continual"]["suites"] == ({"name": "ood", "path": "mini:storms:ood:heldout"},)


@pytest.mark.parametrize("world", WORLDS[2:], ids=lambda world: world.name)
def test_rows_of_different_use_have_different_prompts(world):
    trained = {name: prompts(f"{world.prefix}{name}:train") for name in world.skills}
    evaluated = {
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
    assert all(map(len, [*trained.values(), *evaluated.values(), *prior.values(), general]))

    assert not prior["validation"] & prior["heldout"]
    for name in world.skills:
        assert not evaluated[f"{name} validation"] & evaluated[f"{name} heldout"]
    for rows, questions in itertools.product(trained.values(), [*evaluated.values(), *prior.values()]):
        assert not rows & questions
    for questions in [*trained.values(), *evaluated.values()]:
        assert not general & questions
        for old in prior.values():
            assert not old & questions
    for old in prior.values():
        assert not general & old


def test_no_test_row_is_a_validation_row_of_another_skill():
    for world in WORLDS[2:]:
        for first, second in itertools.product(world.skills, repeat=2):
            chosen_on = prompts(f"{world.prefix}{first}:validation")
            assert not chosen_on & prompts(f"{world.prefix}{second}:heldout")
