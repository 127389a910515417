"""Which runs a continual configuration means, and every mistake in it."""

from pathlib import Path

import numpy as np
import pytest

from runs import config_of
from sdft_jax.config import from_dict, to_dict
from sdft_jax.config.overrides import merge
from sdft_jax.continual.stages import (
    Arm,
    arms_of,
    directory_of,
    joined,
    last_model,
    on_arm,
    prepare_all,
    prepare_joint,
    stages_of,
    suites_of,
)
from sdft_jax.data.encoding import Dropped, Encoded
from sdft_jax.errors import SdftError
from sdft_jax.training.inputs import Prepared

ONE = {"name": "one", "data": {"path": "mini:blax"}, "train": {"steps": 2}}
FAST = {"optimizer": {"learning_rate": 0.5}}
TWO = {"name": "two", "data": {"path": "mini:drib"}, "train": {"steps": 3}} | FAST


def config_with(*stages: dict, **sections: dict):
    tree = {"continual": {"stages": stages}, "eval": {"base": None}}
    return from_dict(merge(merge(to_dict(config_of("mini", "out", "baseline=true")), tree), sections), "test")


def test_a_stage_is_the_whole_configuration_with_what_it_changes():
    one, two = stages_of(config_with(ONE, TWO))
    assert (one.name, two.name) == ("one", "two")
    assert (one.config.data.path, one.config.train.steps) == ("mini:blax", 2)
    assert (two.config.data.path, two.config.train.steps) == ("mini:drib", 3)
    assert (one.config.optimizer.learning_rate, two.config.optimizer.learning_rate) == (1e-3, 0.5)
    assert one.config.sampling == two.config.sampling == config_with().sampling
    assert one.config.continual.stages == ()
    assert not one.config.baseline
    assert dict(one.changes) == {key: ONE[key] for key in ("data", "train")}


MISTAKES = {
    "none": ((), "continual.stages is empty: list the stages"),
    "no name": ((ONE, {"data": {}}), "continual.stages: stage 2 has no name: add name: SOMETHING"),
    "no text": (({"name": 3},), "stage 1 has no name"),
    "twice": ((ONE, TWO, ONE), "the name 'one' is taken twice, reserved or holds a slash: give another"),
    "reserved": (({"name": "prior"},), "the name 'prior' is taken twice, reserved"),
    "slash": (({"name": "a/b"},), "the name 'a/b' is taken twice, reserved or holds a slash"),
    "output": (({"name": "a", "output": "x"},), "stage a sets output, which belongs to the whole run"),
    "model": (({"name": "a", "model": {"path": "x"}},), "stage a sets model, which belongs to the whole run"),
    "continual": (({"name": "a", "continual": {}},), "stage a sets continual, which belongs to the whole"),
    "unknown": (
        ({"name": "a", "train": {"step": 3}},),
        "continual.stages: stage a: unknown key train.step; did you mean train.steps?",
    ),
    "ill-typed": (
        ({"name": "a", "train": {"steps": "many"}},),
        "continual.stages: stage a: train.steps='many': input should be a valid integer",
    ),
    "no data": (
        (ONE, {"name": "two"}),
        "continual.stages: stage two has no data of its own: add data",
    ),
    "unmeasured": (({"name": "a", "eval": {"path": None}},), "nothing would be measured: give at least one"),
}


@pytest.mark.parametrize("kind", MISTAKES)
def test_a_mistake_in_a_stage_is_one_sentence(kind):
    stages, sentence = MISTAKES[kind]
    with pytest.raises(SdftError) as caught:
        stages_of(config_with(*stages))
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("place", ["whole", "stage"])
def test_an_oracle_without_demonstrations_is_refused(place):
    hidden = {"eval": {"teacher": False}}
    whole, stage = (hidden, {}) if place == "whole" else ({}, hidden)
    for methods in (("sdft",), ("sdft", "oracle")):
        config = config_with(ONE, TWO | stage, continual={"methods": methods}, **whole)
        if "oracle" not in methods:
            assert len(stages_of(config)) == 2
            continue
        name = "one" if place == "whole" else "two"
        with pytest.raises(SdftError, match=f"stage {name}: the oracle answers with the demonstration"):
            stages_of(config)


SUITES = {
    "no name": ({"path": "mini:old"}, "continual.suites: suite 1 has no name: add name: SOMETHING"),
    "no path": ({"name": "a", "path": None}, "continual.suites: suite a has no path: add path: FILE"),
    "unknown": ({"name": "a", "limits": 3}, "suite a: unknown key eval.limits; did you mean eval.limit?"),
    "a stage's": ({"name": "one", "path": "mini:old"}, "continual.suites: the name 'one' is taken twice"),
    "reserved": ({"name": "prior", "path": "mini:old"}, "continual.suites: the name 'prior' is taken twice"),
    "slash": ({"name": "validation/one", "path": "mini:old"}, "the name 'validation/one' is taken twice"),
}


@pytest.fixture(scope="module")
def prepared():
    config = config_with(ONE)
    return prepare_all(stages_of(config), ["sdft"], active=False)["sdft"][0]


@pytest.mark.parametrize("kind", SUITES)
def test_a_mistake_in_a_suite_is_one_sentence(kind, prepared):
    tree, sentence = SUITES[kind]
    with pytest.raises(SdftError) as caught:
        suites_of(config_with(ONE, continual={"suites": (tree,)}), prepared)
    assert sentence in str(caught.value)


def test_suites_have_rows_and_settings_of_their_own(prepared):
    trees = ({"name": "a", "path": "mini:old", "limit": 3}, {"name": "b", "path": "mini:blax:heldout"})
    found = suites_of(config_with(ONE, continual={"suites": trees}), prepared)
    assert {name: (config.eval.limit, len(rows.examples)) for name, (config, rows) in found.items()} == {
        "a": (3, 3),
        "b": (8, 8),
    }
    twice = config_with(ONE, continual={"suites": (trees[0], trees[0])})
    with pytest.raises(SdftError, match="the name 'a' is taken twice"):
        suites_of(twice, prepared)


def test_arms_are_all_combinations_and_one_oracle():
    options = {"methods": ("sdft", "oracle"), "learning_rates": (3e-5, 1e-4), "seeds": (1, 2)}
    arms = arms_of(config_with(ONE, continual=options))
    assert [arm.name for arm in arms] == [
        "sdft-lr3e-5-seed1",
        "sdft-lr3e-5-seed2",
        "sdft-lr1e-4-seed1",
        "sdft-lr1e-4-seed2",
        "oracle",
    ]
    assert arms_of(config_with(ONE)) == (Arm("sdft", 1e-3, 42),)


def test_an_arm_of_a_stage_starts_from_the_weights_given_and_is_measured_from_the_model():
    stage = stages_of(config_with(ONE, TWO))[1]
    config = on_arm(stage, Arm("sft", 0.25, 7), sweep=True, output="there", start="weights")
    assert (config.train.method, config.train.seed, config.optimizer.learning_rate) == ("sft", 7, 0.25)
    assert (config.output, config.model.path, config.eval.base) == ("there", "weights", "mini")
    kept = on_arm(stage, Arm("sft", 0.25, 7), sweep=False, output="there", start="weights")
    assert kept.optimizer.learning_rate == 0.5, "without a sweep a stage's own rate stands"


def test_directories():
    config, arm = config_with(ONE, TWO), Arm("sft", 1e-4, 0)
    stages = stages_of(config)
    assert directory_of(config, arm, 1, stages[1]) == Path("out/sft-lr1e-4-seed0/2-two")
    assert last_model(config, arm, stages) == Path("out/sft-lr1e-4-seed0/2-two/model")
    assert last_model(config, Arm("joint", 1e-4, 0), stages) == Path("out/joint-lr1e-4-seed0/1-joint/model")


def test_joint_takes_the_sum_of_the_steps_or_goes_by_epochs():
    stages = stages_of(config_with(ONE, TWO))
    assert joined(stages).config.train.steps == 5
    assert joined(stages).config.data.path == "mini:blax"
    endless = {"train": {"steps": None, "epochs": 4.0}}
    by_epochs = joined(stages_of(config_with(merge(ONE, endless), TWO)))
    assert (by_epochs.config.train.steps, by_epochs.config.train.epochs) == (None, 4.0)


def test_joint_numbers_its_rows_through():
    def encoded(token: int, row: int) -> Encoded:
        return Encoded(*(np.array([token]) for _ in range(3)), row)

    def tokens(*rows: Encoded) -> Prepared:
        return Prepared("", None, (1,), 0, rows, Dropped(), None, None)

    rows = prepare_joint([tokens(encoded(5, 0), encoded(6, 2)), tokens(encoded(7, 0))]).train
    assert [(row.prompt.item(), row.row) for row in rows] == [(5, 0), (6, 1), (7, 2)]
