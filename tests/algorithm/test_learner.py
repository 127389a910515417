"""The static part of an update: its teacher, its micro-batches, and batches that do not divide."""

import dataclasses

import pytest

from make_fixtures import CASES
from sdft_jax.algorithm import check_batch, check_rows, make_learner, make_model, make_optimizer
from sdft_jax.algorithm.learner import Learner
from sdft_jax.config import load_config
from sdft_jax.config.devices import sharding_from
from sdft_jax.errors import SdftError
from sdft_jax.models import architecture_from_dict
from sdft_jax.sharding import Sharding, make_mesh
from sdft_jax.types import StopTokens
from tiny import EOS, PAD, QWEN3, tiny_learner, tiny_model


def config_of(method, *overrides):
    return load_config(None, [f"train.method={method}", "data.general=unused", *overrides])


def learner_of(config):
    return make_learner(config, tiny_model()[0], 10, StopTokens((EOS,), PAD))


def test_learners_of_equal_parts_are_equal_and_have_the_same_hash():
    """A jitted function that has a learner as a static argument then compiles once."""
    optimizer = make_optimizer(config_of("sdft").optimizer, 10)

    def learner(*overrides):
        return Learner(tiny_model()[0], optimizer, config_of("sdft", *overrides), StopTokens((EOS,), PAD))

    assert learner() is not learner()
    assert learner() == learner()
    assert hash(learner()) == hash(learner())
    assert learner("teacher.rate=0.5") != learner()
    assert dataclasses.replace(learner(), stop=StopTokens((EOS, 2), PAD)) != learner()
    assert (
        dataclasses.replace(learner(), optimizer=make_optimizer(config_of("sdft").optimizer, 10)) != learner()
    )


@pytest.mark.parametrize("schedule", ["ema", "periodic", "live"])
def test_the_teacher_of_sdft_is_the_teacher_section(schedule):
    config = config_of("sdft", f"teacher.schedule={schedule}")
    assert learner_of(config).teacher is config.teacher


@pytest.mark.parametrize("method", ["reinvoke", "offline", "offline_kl"])
@pytest.mark.parametrize("schedule", ["ema", "live"])
def test_the_teacher_of_offline_methods_is_frozen(method, schedule):
    config = config_of(method, f"teacher.schedule={schedule}", "teacher.dtype=bfloat16")
    assert learner_of(config).teacher == dataclasses.replace(config.teacher, schedule="frozen")


@pytest.mark.parametrize("method", ["sft", "dft", "cpt", "joint", "oracle"])
def test_other_methods_have_no_teacher(method):
    assert learner_of(config_of(method)).teacher is None


@pytest.mark.parametrize(("micro_batch", "parts"), [("null", 1), ("8", 1), ("4", 2), ("1", 8)])
def test_number_of_micro_batches(micro_batch, parts):
    assert tiny_learner(f"train.micro_batch={micro_batch}")[0].micro_batches == parts


def test_the_model_of_a_configuration():
    sharding = Sharding(make_mesh(2, 2, 2))
    config = load_config(None, ["model.compute_dtype=bfloat16", "model.remat=dots", "model.attention=xla"])
    model = make_model(config, architecture_from_dict(QWEN3), sharding, "directory")
    assert (model.compute_dtype, model.remat, model.attention) == ("bfloat16", "dots", "xla")
    assert (model.sharding, model.source) == (sharding, "directory")
    assert model.architecture == architecture_from_dict(QWEN3)


@pytest.mark.parametrize(
    ("overrides", "mesh", "message"),
    [
        (["train.micro_batch=3"], (1, 1, 1), r"train\.batch_size=8 is not divisible by train\.micro_batch=3"),
        (["train.micro_batch=4"], (8, 1, 1), r"train\.micro_batch=4 .* the 8 parts of mesh axes data x fsdp"),
        (["train.batch_size=12"], (8, 1, 1), r"train\.batch_size=12 .* the 8 parts of mesh axes data x fsdp"),
    ],
)
def test_batches_that_do_not_divide_are_refused(overrides, mesh, message):
    learner, _ = tiny_learner(*overrides, mesh=mesh)
    with pytest.raises(SdftError, match=message):
        check_batch(learner.config, learner.model.sharding)


def test_batches_that_divide_are_accepted():
    learner, _ = tiny_learner("train.batch_size=16", "train.micro_batch=8", mesh=(2, 2, 2))
    check_batch(learner.config, learner.model.sharding)


def test_rows_that_the_mesh_does_not_divide_are_refused_with_their_option():
    sharding = Sharding(make_mesh(2, 2, 2))
    check_rows(8, "eval.batch_size", sharding)
    with pytest.raises(
        SdftError, match=r"eval\.batch_size=6 is not divisible by the 4 parts .* mesh\.data or"
    ):
        check_rows(6, "eval.batch_size", sharding)


@pytest.mark.parametrize(
    ("case", "override", "message"),
    [
        ("qwen3", "objective.balance=0.1", r"objective\.balance=0\.1: the model has no experts: set it to 0"),
        (
            "qwen3_moe",
            "lora.quantize=nf4",
            r"quantize=nf4 is not supported for qwen3_moe models: the experts",
        ),
        ("phi4_mini", "train.completion_buckets=[4]", r"completion_buckets is not supported .* longrope"),
        ("qwen3", "mesh.expert=8", r"mesh\.expert=8: the model has no experts: .* mesh\.fsdp"),
    ],
)
def test_settings_that_do_not_fit_the_model_are_refused(case, override, message):
    config = load_config(None, [override, "lora.rank=2", "mesh.fsdp=1", "mesh.data=-1"])
    with pytest.raises(SdftError, match=message):
        make_model(config, architecture_from_dict(CASES[case]), sharding_from(config))
