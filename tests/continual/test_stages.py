"""The stages, suites and arms of a continual configuration, and every error in them."""

import numpy as np
import pytest

from runs import config_of
from sdft_jax.config import Config, from_dict, method_named, to_dict
from sdft_jax.config.overrides import merge
from sdft_jax.config.settings import DataConfig
from sdft_jax.continual.stages import (
    Arm,
    Stage,
    arm_config,
    arm_inputs,
    arm_stages,
    arms_of,
    last_model,
    load_all_inputs,
    load_suites,
    stage_directory,
    stages_of,
)
from sdft_jax.data.encoding import Dropped, Encoded, make_format
from sdft_jax.errors import SdftError
from sdft_jax.training.inputs import Inputs
from sdft_jax.training.run_directory import RunDirectory

ONE = {"name": "one", "data": {"path": "mini:blax"}, "train": {"steps": 2}}
TWO = {
    "name": "two",
    "data": {"path": "mini:drib"},
    "train": {"steps": 3},
    "optimizer": {"learning_rate": 0.5},
}


def arm(method: str, rate: float = 1e-3, seed: int = 42) -> Arm:
    return Arm(method_named(method), rate, seed)


def config_with(*stages: dict, **sections: dict):
    """Return a configuration with these stages, and these keys in its sections."""
    tree = {"continual": {"stages": stages}, "eval": {"base": None}}
    return from_dict(merge(merge(to_dict(config_of("mini", "out", "baseline=true")), tree), sections), "test")


def test_a_stage_is_the_run_configuration_with_its_changes():
    one, two = stages_of(config_with(ONE, TWO))
    assert (one.name, two.name) == ("one", "two")
    assert (one.config.data.path, one.config.train.steps) == ("mini:blax", 2)
    assert (two.config.data.path, two.config.train.steps) == ("mini:drib", 3)
    assert (one.config.optimizer.learning_rate, two.config.optimizer.learning_rate) == (1e-3, 0.5)
    assert one.config.sampling == two.config.sampling == config_with().sampling
    assert one.config.continual.stages == ()
    assert not one.config.baseline
    assert dict(one.changes) == {key: ONE[key] for key in ("data", "train")}


ERRORS = {
    "no stage": ((), "continual.stages is empty: list the stages"),
    "no name": ((ONE, {"data": {}}), "continual.stages: stage 2 has no name: add name: SOMETHING"),
    "name of another type": (({"name": 3},), "continual.stages: stage 1 has no name: add name: SOMETHING"),
    "name used twice": (
        (ONE, TWO, ONE),
        "continual.stages: the name 'one' is used twice, is reserved or contains a slash: choose another",
    ),
    "reserved name": (
        ({"name": "prior"},),
        "the name 'prior' is used twice, is reserved or contains a slash",
    ),
    "slash in a name": (({"name": "a/b"},), "the name 'a/b' is used twice, is reserved or contains a slash"),
    "output": (({"name": "a", "output": "x"},), "stage a sets output, which belongs to the whole run"),
    "model": (({"name": "a", "model": {"path": "x"}},), "stage a sets model, which belongs to the whole run"),
    "continual": (({"name": "a", "continual": {}},), "stage a sets continual, which belongs to the whole"),
    "unknown key": (
        ({"name": "a", "train": {"step": 3}},),
        "continual.stages: stage a: unknown key train.step; did you mean train.steps?",
    ),
    "value of the wrong type": (
        ({"name": "a", "train": {"steps": "many"}},),
        "continual.stages: stage a: train.steps='many': input should be a valid integer",
    ),
    "no data": (
        (ONE, {"name": "two"}),
        "continual.stages: stage two has no data of its own: add data",
    ),
    "no evaluation": (
        ({"name": "a", "eval": {"path": None}},),
        "continual.stages: no stage has an evaluation: set eval.path of at least one stage",
    ),
}


@pytest.mark.parametrize("kind", ERRORS)
def test_error_in_a_stage_is_one_line(kind):
    stages, message = ERRORS[kind]
    with pytest.raises(SdftError) as error:
        stages_of(config_with(*stages))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("level", ["run", "stage"])
def test_oracle_requires_the_demonstration_in_context(level):
    without = {"eval": {"teacher": False}}
    run, stage = (without, {}) if level == "run" else ({}, without)
    config = config_with(ONE, TWO | stage, continual={"methods": ("sdft",)}, **run)
    assert len(stages_of(config)) == 2
    config = config_with(ONE, TWO | stage, continual={"methods": ("sdft", "oracle")}, **run)
    name = "one" if level == "run" else "two"
    with pytest.raises(SdftError, match=f"stage {name}: the oracle answers with the demonstration"):
        stages_of(config)


SUITES = {
    "no name": ({"path": "mini:old"}, "continual.suites: suite 1 has no name: add name: SOMETHING"),
    "no path": ({"name": "a", "path": None}, "continual.suites: suite a has no path: add path: FILE"),
    "unknown key": ({"name": "a", "limits": 3}, "suite a: unknown key eval.limits; did you mean eval.limit?"),
    "name of a stage": (
        {"name": "one", "path": "mini:old"},
        "continual.suites: the name 'one' is used twice",
    ),
    "reserved name": (
        {"name": "prior", "path": "mini:old"},
        "continual.suites: the name 'prior' is used twice",
    ),
    "slash in a name": (
        {"name": "validation/one", "path": "mini:old"},
        "continual.suites: the name 'validation/one' is used twice, is reserved or contains a slash: choose",
    ),
}


@pytest.fixture(scope="module")
def format():
    config = config_with(ONE)
    inputs = load_all_inputs(stages_of(config), [method_named("sdft")])["sdft"][0]
    return make_format(inputs.tokenizer, config.data, inputs.eos_ids)


@pytest.mark.parametrize("kind", SUITES)
def test_error_in_a_suite_is_one_line(kind, format):
    tree, message = SUITES[kind]
    with pytest.raises(SdftError) as error:
        load_suites(config_with(ONE, continual={"suites": (tree,)}), format)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_suites_have_rows_and_settings_of_their_own(format):
    trees = ({"name": "a", "path": "mini:old", "limit": 3}, {"name": "b", "path": "mini:blax:heldout"})
    suites = load_suites(config_with(ONE, continual={"suites": trees}), format)
    assert {name: (config.eval.limit, len(rows.examples)) for name, (config, rows) in suites.items()} == {
        "a": (3, 3),
        "b": (8, 8),
    }
    twice = config_with(ONE, continual={"suites": (trees[0], trees[0])})
    with pytest.raises(SdftError, match="the name 'a' is used twice"):
        load_suites(twice, format)


def test_arms_are_all_combinations_and_one_arm_of_the_oracle():
    options = {"methods": ("sdft", "oracle"), "learning_rates": (3e-5, 1e-4), "seeds": (1, 2)}
    assert [arm.name for arm in arms_of(config_with(ONE, continual=options))] == [
        "sdft-lr3e-5-seed1",
        "sdft-lr3e-5-seed2",
        "sdft-lr1e-4-seed1",
        "sdft-lr1e-4-seed2",
        "oracle",
    ]
    assert arms_of(config_with(ONE)) == (arm("sdft", 1e-3, 42),)


def test_configuration_of_a_stage_in_an_arm():
    stage = stages_of(config_with(ONE, TWO))[1]
    config = arm_config(stage, arm("sft", 0.25, 7), sweep=True, output="there", start="weights")
    assert (config.train.method, config.train.seed, config.optimizer.learning_rate) == ("sft", 7, 0.25)
    assert (config.output, config.model.path, config.eval.base) == ("there", "weights", "mini")
    single = arm_config(stage, arm("sft", 0.25, 7), sweep=False, output="there", start="weights")
    assert single.optimizer.learning_rate == 0.5, "without a sweep the stage's own rate applies"


def test_with_adapters_a_stage_starts_from_the_adapter_of_the_previous_one():
    stage = stages_of(config_with(ONE, TWO, lora={"rank": 2, "adapter": "given"}))[1]
    config = arm_config(stage, arm("sft", 0.25, 7), sweep=False, output="there", start="adapter")
    assert (config.model.path, config.lora.adapter, config.eval.base) == ("mini", "adapter", "mini")
    first = arm_config(stage, arm("sft", 0.25, 7), sweep=False, output="there")
    assert (first.model.path, first.lora.adapter) == ("mini", "given")


def test_directories():
    config, sft = config_with(ONE, TWO), arm("sft", 1e-4, 0)
    stages = stages_of(config)
    assert stage_directory(config, sft, 1, stages[1]) == RunDirectory("out/sft-lr1e-4-seed0/2-two")
    assert last_model(config, sft, stages) == "out/sft-lr1e-4-seed0/2-two/model"
    assert last_model(config, arm("joint", 1e-4, 0), stages) == "out/joint-lr1e-4-seed0/1-joint/model"


def test_arm_trains_the_stages_in_order():
    stages = stages_of(config_with(ONE, TWO))
    assert arm_stages(arm("sft"), stages) == stages


def joint_train(*stages):
    """Return the training settings of the joint arm of these stages."""
    (stage,) = arm_stages(arm("joint"), stages_of(config_with(*stages)))
    assert (stage.name, stage.config.data.path) == ("joint", "mini:blax")
    return stage.config.train


def test_joint_arm_trains_one_stage_for_the_sum_of_the_steps():
    assert joint_train(ONE, TWO).steps == 5


def test_joint_arm_trains_by_epochs_if_a_stage_has_no_steps():
    train = joint_train(merge(ONE, {"train": {"steps": None, "epochs": 4.0}}), TWO)
    assert (train.steps, train.epochs) == (None, 4.0)


def test_joint_arm_never_stops_early():
    stopping = {"stop_at": 0.5, "patience": 2, "max_kl": 0.1, "choose": "best"}
    train = joint_train(merge(ONE, {"train": stopping}), TWO)
    assert (train.stop_at, train.patience, train.max_kl, train.choose) == (None, 0, None, "last")


def test_joint_arm_has_the_rows_of_all_stages_numbered_consecutively():
    def encoded(token: int, row: int) -> Encoded:
        return Encoded(*(np.array([token]) for _ in range(3)), row)

    def inputs(dropped: Dropped, *rows: Encoded) -> Inputs:
        return Inputs("", None, (1,), rows, dropped)

    parts = [
        inputs(Dropped(prompt=(1,), demonstrations=2), encoded(5, 0), encoded(6, 2)),
        inputs(Dropped(prompt=(1, 3), target=(2,), demonstrations=1), encoded(7, 0)),
    ]
    stages = [Stage(name, Config(data=DataConfig(path=f"{name}.jsonl")), {}) for name in ("one", "two")]
    (joint,) = arm_inputs(arm("joint"), stages, parts)
    assert [(row.prompt.item(), row.row) for row in joint.train] == [(5, 0), (6, 1), (7, 2)]
    assert (joint.dropped.total, joint.dropped.demonstrations) == (4, 3)
    assert joint.sources == ("one.jsonl", "two.jsonl")
    assert arm_inputs(arm("sft"), stages, parts) == tuple(parts)
