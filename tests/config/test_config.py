"""Configurations from files and overrides; an error message is one sentence with the key and the remedy."""

import re
from pathlib import Path

import pytest

from sdft_jax.config import Config, describe, from_dict, keys, load_config, to_dict
from sdft_jax.config.config import is_setting
from sdft_jax.errors import SdftError

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("**/*.yaml"))


def test_overrides_replace_the_file_and_the_file_replaces_the_preset(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("preset: official\nobjective: {skip_tokens: 5}\ntrain: {batch_size: 8, steps: 3}\n")
    config = load_config(path, ["train.steps=4"])
    assert config.objective.skip_tokens == 5
    assert config.objective.importance == "sequence"
    assert (config.train.batch_size, config.train.steps) == (8, 4)


def test_a_configuration_continues_in_further_files(tmp_path):
    model, task = tmp_path / "model.yaml", tmp_path / "task.yml"
    model.write_text("preset: official\nlora: {rank: 4}\ntrain: {steps: 3}\n")
    task.write_text("train: {steps: 5}\neval: {task: choice}\n")
    config = load_config(model, ["train.steps=4", str(task), "eval.limit=2"])
    assert (config.lora.rank, config.train.steps, config.eval.task, config.eval.limit) == (4, 5, "choice", 2)
    task.write_text("train: {step: 5}\n")
    with pytest.raises(SdftError, match=r"task\.yml: unknown key train\.step; did you mean train\.steps\?"):
        load_config(model, [str(task)])
    with pytest.raises(SdftError, match=r"none\.yaml does not exist: give a YAML file"):
        load_config(model, ["none.yaml"])


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
    setting = load_config(None, [override])
    for part in override.partition("=")[0].split(".")[:2]:
        setting = getattr(setting, part)
    assert setting == value
    assert type(setting) is type(value)


def test_describe_lists_the_keys_that_differ_from_the_defaults():
    assert describe(load_config(None, ["train.batch_size=8"])) == [("train.batch_size", "8", "32")]
    ((_, template, _),) = describe(load_config(None, ['data.template="$demonstration\\n\\n$question"']))
    assert template == "$demonstration\\n\\n$question", "a text with several lines is on one line"


@pytest.mark.parametrize("preset", ["sdft", "official"])
def test_a_configuration_survives_a_round_trip_through_dictionaries(preset):
    config = load_config(
        None, [f"preset={preset}", "data.prompt_buckets=[8]", "data.template_kwargs={a: [1]}"]
    )
    assert from_dict(to_dict(config), "copy") == config
    assert hash(from_dict(to_dict(config), "copy")) == hash(config)


def test_keys_are_dotted_and_have_no_sections():
    assert "train.batch_size" in keys()
    assert {"data.template_kwargs", "data.teacher_template_kwargs"} <= set(keys())
    assert "train" not in keys()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.batchsize=3", "unknown key train.batchsize; did you mean train.batch_size?"),
        ("trian.batch_size=3", "unknown key trian; did you mean train?"),
        ("seed=3", "unknown key seed; did you mean train.seed?"),
        ("optimizer.lerning_rate=1", "did you mean optimizer.learning_rate?"),
        ("xyzzy=3", "unknown key xyzzy; the known keys are preset, output,"),
        ("train.batch_size=many", "train.batch_size='many': input should be a valid integer"),
        ("train.batch_size=1.5", "train.batch_size=1.5: input should be a valid integer"),
        ("train.batch_size=0", "train.batch_size=0: input should be greater than 0"),
        (
            "train.batch_size=true",
            "train.batch_size=True: give a number instead of true or false",
        ),
        ("teacher.rate=2", "teacher.rate=2: input should be less than or equal to 1"),
        ("sampling.top_p=0.0", "sampling.top_p=0.0: input should be greater than 0"),
        ("optimizer.learning_rate=nan", "optimizer.learning_rate='nan': input should be a finite number"),
        ("optimizer.freeze=embed", "optimizer.freeze='embed': give a list, such as [embed]"),
        ("model.param_dtype=float16", "input should be 'float32' or 'bfloat16'"),
        ("model=7", "model=7 is not a section: give it keys and values"),
        ("sharding.mlp=tensr", "sharding.mlp: the mesh has no axis 'tensr': use one of data, fsdp, expert"),
        ("preset=offical", "preset='offical' does not exist: use one of sdft, official"),
        ("preset=[a]", "preset=['a'] does not exist"),
        ("train.steps", "override 'train.steps' is not key=value: write it like train.batch_size=16"),
    ],
)
def test_wrong_overrides_are_refused(override, message):
    with pytest.raises(SdftError, match=re.escape(message)):
        load_config(None, [override])


def test_an_unknown_key_in_a_file_is_reported_with_the_file(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("train: {batchsize: 3}")
    with pytest.raises(SdftError, match=r"run\.yaml: unknown key train\.batchsize"):
        load_config(path)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["train.completion_buckets=[4,8]", "sampling.max_new_tokens=8"],
            "train.completion_buckets=(4, 8): 8 is not below sampling.max_new_tokens=8: remove it.",
        ),
        (
            ["train.method=reinvoke"],
            "train.method=reinvoke distills the base model on general prompts, and data.general is not set",
        ),
        (
            ["train.choose=best", "eval.path=mini:old", "train.eval_every=0"],
            "train.choose=best needs evaluations: set eval.validation (or eval.path), train.eval_every and",
        ),
        (
            ["train.stop_at=0.9", "train.eval_every=5"],
            "train.stop_at stops by the score of evaluations, of which one is not set: set eval.validation",
        ),
        (
            ["train.patience=2", "eval.path=mini:old"],
            "train.patience stops by the score of evaluations, of which one is not set: set eval.validation",
        ),
        (
            ["train.max_kl=0.5"],
            "train.max_kl is a distance on the prompts of eval.prior, which is not set: set eval.prior.",
        ),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_settings_that_contradict_each_other_are_refused(overrides, message):
    with pytest.raises(SdftError, match=re.escape(message)):
        load_config(None, overrides)


@pytest.mark.parametrize("method", ["sft", "cpt", "joint", "oracle"])
def test_methods_without_an_sft_baseline(method):
    message = rf"baseline=true trains SFT .* train\.method={method} needs none: set baseline=false"
    with pytest.raises(SdftError, match=message):
        load_config(None, [f"train.method={method}", "baseline=true"])


@pytest.mark.parametrize("method", ["sdft", "dft", "reinvoke", "offline", "offline_kl"])
def test_methods_with_an_sft_baseline(method):
    assert load_config(None, [f"train.method={method}", "baseline=true", "data.general=unused"]).baseline


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"train: {batch_size: 3", "is not valid YAML"),
        (b"train:\n\tsteps: 3", "is not valid YAML"),
        (b"\xff\xfe\xfa", "is not valid YAML"),
        (b"- a\n- b", "holds a list: write keys and values at its top level"),
    ],
)
def test_malformed_files_are_refused(tmp_path, content, message):
    path = tmp_path / "run.yaml"
    path.write_bytes(content)
    with pytest.raises(SdftError, match=rf"run\.yaml.*{message}"):
        load_config(path)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(SdftError, match=r"missing\.yaml does not exist"):
        load_config(tmp_path / "missing.yaml")


def test_an_empty_file_is_the_default_configuration(tmp_path):
    (tmp_path / "empty.yaml").write_text("# nothing\n")
    assert load_config(tmp_path / "empty.yaml") == Config()


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_the_files_in_configs_load(path):
    load_config(path)


def test_tilde_is_the_home_directory(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    config = load_config(None, ["output=~/runs/a", "model.path=~/m", "data.path=a~b"])
    assert (config.output, config.model.path) == ("/home/me/runs/a", "/home/me/m")
    assert config.data.path == "a~b"
    with pytest.raises(SdftError, match=r"^output='a\\x00b' contains a NUL character: remove it\.$"):
        load_config(None, ["output=a\0b"])


def test_unknown_key_of_an_override_names_the_override():
    with pytest.raises(SdftError, match=r"^override 'train\.step=3': unknown key train\.step; did you mean"):
        load_config(None, ["train.step=3"])


def test_stages_may_have_the_evaluations_that_stopping_and_choosing_need():
    settings = ["train.stop_at=0.9", "train.patience=2", "train.choose=best", "continual.stages=[{name: a}]"]
    assert load_config(None, settings).train.stop_at == 0.9


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ("sampling.temperature=0", True),
        ("sampling.temprature=0", True),
        ("output=x", True),
        ("data.template_kwargs.enable_thinking=false", True),
        ("data.teacher_template_kwargs={enable_thinking: true}", True),
        ("x=1", False),
        ("Solve a.b=2.", False),
        ("sampling", False),
        ("What is train.seed=1 for?", False),
    ],
)
def test_settings_among_other_arguments(text, verdict):
    assert is_setting(text) is verdict
