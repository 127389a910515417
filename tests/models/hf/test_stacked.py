"""Experts in one tensor of a file: read as matrices, and written as the source has them."""

import dataclasses

import jax
import numpy as np
import pytest

from make_fixtures import CASES, DIRECTORY
from sdft_jax.errors import SdftError
from sdft_jax.models import Model, architecture_from_dict, load_model
from sdft_jax.models.hf.reading import open_checkpoint
from sdft_jax.models.hf.safetensors_io import read_header, write_file
from sdft_jax.models.hf.stacked import separate, stacked
from sdft_jax.models.hf.writing import save_pretrained

GATE_UP, DOWN = "model.layers.1.mlp.experts.gate_up_proj", "model.layers.1.mlp.experts.down_proj"


@pytest.fixture
def tensors(tmp_path):
    """A file with the stacks of two experts of width 3 and a matrix beside them, and its arrays."""
    arrays = {
        GATE_UP: np.arange(48, dtype=np.float32).reshape(2, 6, 4),
        DOWN: -np.arange(24, dtype=np.float32).reshape(2, 4, 3),
        "model.layers.1.mlp.gate.weight": np.ones((2, 4), np.float32),
    }
    file = tmp_path / "model.safetensors"
    write_file(file, {name: (x.dtype, x.shape) for name, x in arrays.items()}, arrays.values())
    return read_header(file), arrays


def test_the_example_of_the_module(tensors):
    stored, arrays = tensors
    separated = separate(stored)
    assert len(separated) == 7
    up = separated["model.layers.1.mlp.experts.1.up_proj.weight"]
    assert up.name == GATE_UP
    np.testing.assert_array_equal(up.map(), arrays[GATE_UP][1, 3:6])
    np.testing.assert_array_equal(
        separated["model.layers.1.mlp.experts.0.gate_proj.weight"].map(), arrays[GATE_UP][0, :3]
    )
    np.testing.assert_array_equal(
        separated["model.layers.1.mlp.experts.1.down_proj.weight"].map(), arrays[DOWN][1]
    )


def test_stacked_is_the_inverse_of_separate(tensors):
    stored, arrays = tensors
    for name in (GATE_UP, DOWN):
        parts = [part for part in separate(stored).values() if part.name == name]
        for order in (parts, parts[::-1]):
            np.testing.assert_array_equal(
                stacked(stored[name], order, (x.map() for x in order)), arrays[name]
            )


def test_other_shapes_are_left_for_the_comparison_with_the_config(tensors):
    stored, _ = tensors
    flat = dataclasses.replace(stored[GATE_UP], shape=(12, 4))
    odd = dataclasses.replace(stored[GATE_UP], shape=(2, 5, 4))
    assert separate({GATE_UP: flat}) == {GATE_UP: flat}
    assert separate({GATE_UP: odd}) == {GATE_UP: odd}


def test_wrong_number_of_stacked_experts_is_refused():
    raw = CASES["gemma4_moe"] | {"num_experts": 9}
    with pytest.raises(
        SdftError, match=r"tensors are missing, the first is model\.layers\.0\.experts\.8\.gate"
    ):
        open_checkpoint(DIRECTORY / "gemma4_moe", architecture_from_dict(raw))


def test_model_without_a_source_has_the_layout_that_transformers_reads(tmp_path):
    model = Model(architecture_from_dict(CASES["gemma4_moe"]))
    params = model.init(jax.random.key(0))
    save_pretrained(model, params, None, tmp_path / "out", dtype="float32")
    names = read_header(tmp_path / "out" / "model.safetensors").keys()
    assert names == read_header(DIRECTORY / "gemma4_moe" / "model.safetensors").keys()
    jax.tree.map(np.testing.assert_array_equal, load_model(tmp_path / "out")[1], params)
