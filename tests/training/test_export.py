"""Of a run's checkpoint only the student is read, and it is the newest or the best as asked."""

import shutil

import jax
import numpy as np
import pytest

from sdft_jax.config import load_config
from sdft_jax.errors import SdftError
from sdft_jax.models import load_model
from sdft_jax.training.export import export, load_run, run_config


def test_the_configuration_comes_back(finished):
    config = run_config(str(finished))
    assert config.train.steps == 6
    assert config == load_config(finished / "config.yaml")


def test_newest_checkpoint_is_the_exported_model(finished):
    model, params, chosen = load_run(str(finished))
    assert chosen == str(finished / "checkpoints" / "6")
    assert model.source == run_config(str(finished)).model.path
    exported = load_model(finished / "model")[1]
    assert jax.tree.structure(params) == jax.tree.structure(exported)
    for one, two in zip(jax.tree.leaves(params), jax.tree.leaves(exported), strict=True):
        assert np.asarray(one).tobytes() == np.asarray(two).tobytes()


def test_the_best_checkpoint_is_another_one(finished, tmp_path):
    run = shutil.copytree(finished, tmp_path / "run")
    shutil.rmtree(run / "checkpoints" / "6")
    with pytest.raises(SdftError, match=r"no intact checkpoint with a score: set train\.eval_every"):
        load_run(str(run), best=True)
    assert load_run(str(run))[2].endswith("/4")
    assert load_run(str(finished), best=True)[2].endswith("/6")


def test_dtype_is_that_asked_for(finished, tmp_path):
    export(str(finished), str(tmp_path / "half"), dtype="bfloat16")
    half, whole = (
        (path / "model.safetensors").stat().st_size for path in (tmp_path / "half", finished / "model")
    )
    assert whole / 2 < half < whole / 2 + 5000
    assert '"torch_dtype": "bfloat16"' in (tmp_path / "half" / "config.json").read_text()


def test_a_directory_that_is_no_run(tmp_path):
    with pytest.raises(SdftError, match="is not a run directory"):
        run_config(str(tmp_path))
