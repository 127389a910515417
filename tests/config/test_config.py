"""Presets, YAML, overrides; every mistake is one sentence with the key and the remedy."""

import dataclasses
import re
from pathlib import Path

import pytest

from sdft_jax.config import Config, describe, from_dict, keys, load_config, to_dict
from sdft_jax.errors import SdftError

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("**/*.yaml"))


def test_defaults_are_the_sdft_preset():
    assert load_config(None) == Config()
    assert describe(Config()) == []


def test_official_preset_follows_the_released_code():
    config = load_config(None, ["preset=official"])
    assert config.divergence.alpha == 0
    assert (config.objective.skip_tokens, config.objective.importance) == (3, "sequence")
    assert (config.teacher.rate, config.teacher.dtype) == (0.01, "bfloat16")
    assert config.data.max_prompt == config.data.max_teacher_prompt == 1024
    assert (config.optimizer.learning_rate, config.optimizer.warmup) == (2e-5, 0.1)


def test_override_beats_file_and_file_beats_preset(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("preset: official\nobjective: {skip_tokens: 5}\ntrain: {batch_size: 8, steps: 3}\n")
    config = load_config(path, ["train.steps=4"])
    assert config.objective.skip_tokens == 5
    assert config.objective.importance == "sequence"
    assert (config.train.batch_size, config.train.steps) == (8, 4)


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("optimizer.learning_rate=1e-5", 1e-5),
        ("optimizer.learning_rate=3", 3.0),
        ("optimizer.freeze=[embed, layers/q]", ("embed", "layers/q")),
        ("data.prompt_buckets=[8, 16]", (8, 16)),
        ("train.steps=null", None),
        ("data.template_kwargs.enable_thinking=false", {"enable_thinking": False}),
        ("sharding.mlp=null", None),
        ("sharding.batch=[data, fsdp]", ("data", "fsdp")),
        ("model.path=a=b", "a=b"),
        ("report.tensorboard=true", True),
    ],
)
def test_overrides(override, value):
    found = load_config(None, [override])
    for part in override.partition("=")[0].split(".")[:2]:
        found = getattr(found, part)
    assert found == value
    assert type(found) is type(value)


def test_describe_names_what_differs():
    assert describe(load_config(None, ["train.batch_size=8"])) == [("train.batch_size", "8", "32")]


@pytest.mark.parametrize("preset", ["sdft", "official"])
def test_round_trip(preset):
    config = load_config(
        None, [f"preset={preset}", "data.prompt_buckets=[8]", "data.template_kwargs={a: [1]}"]
    )
    assert from_dict(to_dict(config), "copy") == config
    assert hash(from_dict(to_dict(config), "copy")) == hash(config)


def test_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().train.batch_size = 3


def test_keys_are_those_that_load():
    assert "train.batch_size" in keys()
    assert "data.template_kwargs" in keys()
    assert "train" not in keys()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.batchsize=3", "unknown key train.batchsize; did you mean train.batch_size?"),
        ("trian.batch_size=3", "unknown key trian; did you mean train?"),
        ("seed=3", "unknown key seed; did you mean train.seed?"),
        ("optimizer.lerning_rate=1", "did you mean optimizer.learning_rate?"),
        ("xyzzy=3", "unknown key xyzzy; known are preset, output,"),
        ("train.batch_size=many", "train.batch_size='many': input should be a valid integer"),
        ("train.batch_size=1.5", "train.batch_size=1.5: input should be a valid integer"),
        ("train.batch_size=0", "train.batch_size=0: input should be greater than 0"),
        ("train.batch_size=true", "train.batch_size=True: true and false mean nothing here"),
        ("teacher.rate=2", "teacher.rate=2: input should be less than or equal to 1"),
        ("optimizer.learning_rate=nan", "optimizer.learning_rate='nan': input should be a finite number"),
        ("optimizer.freeze=embed", "optimizer.freeze='embed': input should be a valid tuple"),
        ("model.param_dtype=float16", "input should be 'float32' or 'bfloat16'"),
        ("model=7", "model=7: expected keys and values below it"),
        ("sharding.mlp=tensr", "sharding.mlp: there is no mesh axis 'tensr'; they are data, fsdp, tensor"),
        ("preset=offical", "preset='offical': there is no such preset; choose one of sdft, official"),
        ("preset=[a]", "preset=['a']: there is no such preset"),
        ("train.steps", "override 'train.steps': write it as key=value"),
    ],
)
def test_mistakes_are_explained(override, message):
    with pytest.raises(SdftError, match=re.escape(message)):
        load_config(None, [override])


def test_mistakes_in_a_file_name_the_file(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("train: {batchsize: 3}")
    with pytest.raises(SdftError, match=r"run\.yaml: unknown key train\.batchsize"):
        load_config(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"train: {batch_size: 3", "is not valid YAML"),
        (b"train:\n\tsteps: 3", "is not valid YAML"),
        (b"\xff\xfe\xfa", "is not valid YAML"),
        (b"- a\n- b", "expected keys and values, found list"),
    ],
)
def test_unreadable_files(tmp_path, content, message):
    path = tmp_path / "run.yaml"
    path.write_bytes(content)
    with pytest.raises(SdftError, match=rf"run\.yaml.*{message}"):
        load_config(path)


def test_missing_file(tmp_path):
    with pytest.raises(SdftError, match=r"missing\.yaml does not exist"):
        load_config(tmp_path / "missing.yaml")


def test_empty_file_is_the_default(tmp_path):
    (tmp_path / "empty.yaml").write_text("# nothing\n")
    assert load_config(tmp_path / "empty.yaml") == Config()


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_shipped_configs_load(path):
    load_config(path)
