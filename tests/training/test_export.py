"""A run's newest or best checkpoint as a model, of which only the student is read."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest

from runs import config_of
from sdft_jax.config import to_dict
from sdft_jax.errors import SdftError
from sdft_jax.models import load_model
from sdft_jax.training.export import export, load_run, load_speaker, with_template_arguments
from sdft_jax.training.run_directory import RunDirectory


def assert_identical(params, other):
    assert jax.tree.structure(params) == jax.tree.structure(other)
    for one, two in zip(jax.tree.leaves(params), jax.tree.leaves(other), strict=True):
        assert one.dtype == two.dtype
        assert np.asarray(one).tobytes() == np.asarray(two).tobytes()


def test_newest_checkpoint_is_the_exported_model(finished):
    directory = RunDirectory(str(finished))
    model, params, chosen = load_run(directory)
    assert chosen == str(finished / "checkpoints" / "6")
    assert model.source == directory.load_config().model.path
    assert_identical(params, load_model(finished / "model")[1])


def test_best_checkpoint_has_a_score(finished, tmp_path):
    run = shutil.copytree(finished, tmp_path / "run")
    shutil.rmtree(run / "checkpoints" / "6")
    with pytest.raises(SdftError, match=r"no intact checkpoint with a score: set train\.eval_every"):
        load_run(RunDirectory(str(run)), best=True)
    assert load_run(RunDirectory(str(run)))[2].endswith("/4")
    assert load_run(RunDirectory(str(finished)), best=True)[2].endswith("/6")


def test_speaker_of_a_run_and_of_a_model(finished, tiny_directory):
    """Both have the tokenizer and the stop tokens of the base model, on the mesh of the configuration."""
    config = config_of(str(finished), "unused", "mesh.data=2", "mesh.fsdp=1")
    of_run = load_speaker(config)
    assert_identical(of_run.params, load_model(finished / "model")[1])
    of_base = load_speaker(
        dataclasses.replace(config, model=dataclasses.replace(config.model, path=str(tiny_directory)))
    )
    assert_identical(of_base.params, load_model(tiny_directory)[1])
    for speaker in (of_run, of_base):
        assert speaker.model.sharding.mesh.size == 2
        assert speaker.eos_ids == (speaker.tokenizer.eos_token_id,)
        assert {leaf.sharding.num_devices for leaf in jax.tree.leaves(speaker.params)} == {2}


def test_exported_tensors_have_the_requested_dtype(finished, tmp_path):
    assert export(str(finished), str(tmp_path / "half"), dtype="bfloat16").endswith("/checkpoints/6")
    half, whole = (
        (path / "model.safetensors").stat().st_size for path in (tmp_path / "half", finished / "model")
    )
    assert whole / 2 < half < whole / 2 + 5000
    assert '"torch_dtype": "bfloat16"' in (tmp_path / "half" / "config.json").read_text()


def test_arguments_of_the_chat_template_are_those_of_the_run(tiny_directory, tmp_path):
    """Each unless the configuration has its own; a directory of a model has none."""
    settings = "data.template_kwargs={a: 1, b: 2}", "data.teacher_template_kwargs={c: 3}"
    trained = config_of(str(tiny_directory), "unused", *settings)
    run = RunDirectory(str(tmp_path))
    run.checkpoints.mkdir()
    run.config.write_text(json.dumps(to_dict(trained)))
    own = config_of(str(tmp_path), "unused", "data.template_kwargs={b: 4}")
    data = with_template_arguments(own).data
    assert (data.template_kwargs, data.teacher_template_kwargs) == ({"a": 1, "b": 4}, {"c": 3})
    of_model = dataclasses.replace(own, model=trained.model)
    assert with_template_arguments(of_model) == of_model
