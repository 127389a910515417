"""What is lowered is what training runs, and what is counted exactly is what training allocates."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from runs import config_of
from sdft_jax.algorithm.optimizer import make_optimizer
from sdft_jax.algorithm.state import init_state, make_model
from sdft_jax.config import load_config
from sdft_jax.data import make_batches
from sdft_jax.errors import SdftError
from sdft_jax.models import Model
from sdft_jax.plan.footprint import by_kind, update_arrays
from sdft_jax.plan.program import abstract_batch, mesh_sizes, model_shape
from sdft_jax.sampling.layout import lay_out_for_decoding
from sdft_jax.sharding import Sharding, make_mesh
from sdft_jax.training.inputs import prepare
from tiny import QWEN3

# Parameters without the embedding and with it, as the model cards give them.
CARDS = {
    "Qwen2.5-0.5B": 494_032_768,
    "Qwen2.5-1.5B": 1_543_714_304,
    "Qwen2.5-3B": 3_085_938_688,
    "Qwen2.5-7B": 7_615_616_512,
    "Qwen2.5-14B": 14_770_033_664,
    "Qwen2.5-32B": 32_763_876_352,
    "Olmo-3-7B": 7_298_011_136,
}


@pytest.mark.parametrize("name", CARDS)
def test_known_shapes_have_the_parameters_of_their_cards(name):
    shape = model_shape(load_config(None, [f"model.path=Qwen/{name}-Instruct"]))
    params = Model(shape).abstract_params()
    assert sum(x.size for x in jax.tree.leaves(params)) == CARDS[name]


def test_a_directory_needs_no_weights(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(QWEN3))
    shape = model_shape(load_config(None, [f"model.path={tmp_path}"]))
    assert shape.hidden_size == QWEN3["hidden_size"]


def test_an_unknown_model_is_refused_with_those_that_are_known():
    with pytest.raises(
        SdftError, match=r"model\.path=a/b: planning needs the model's config\.json.*Qwen2\.5-7B"
    ):
        model_shape(load_config(None, ["model.path=a/b"]))


def test_meshes_are_all_factorisations():
    assert [tuple(mesh.values()) for mesh in mesh_sizes(4)] == [
        (1, 1, 4),
        (1, 2, 2),
        (1, 4, 1),
        (2, 1, 2),
        (2, 2, 1),
        (4, 1, 1),
    ]
    assert all(np.prod(list(mesh.values())) == 12 for mesh in mesh_sizes(12))


@pytest.mark.parametrize("method", ["sdft", "sft", "offline_kl"])
def test_the_batch_has_the_parts_of_a_real_one(method, tiny_directory):
    config = config_of(tiny_directory, "unused", f"train.method={method}")
    prepared = prepare(config, active=False)
    real = next(
        make_batches(
            prepared.train,
            config.data,
            batch_size=8,
            seed=0,
            pad_id=prepared.pad_id,
            process_index=0,
            process_count=1,
        )
    )
    planned = abstract_batch(config, Sharding(make_mesh(1, 8, 1)))
    for field in dataclasses.fields(real):
        here, there = getattr(planned, field.name), getattr(real, field.name)
        assert here.dtype == there.dtype, field.name
        assert here.shape[0] == there.shape[0], field.name
        if here.ndim > 1:  # the longest that the limits allow, where the real one fits its rows
            assert (here.shape[1] > 0) == (there.shape[1] > 0), field.name
            assert here.shape[1] >= there.shape[1], field.name


@pytest.mark.parametrize("mesh", [(1, 8, 1), (2, 2, 2)])
def test_bytes_of_known_shapes_are_those_that_training_allocates(mesh, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(QWEN3))
    config = load_config(
        None,
        [
            f"model.path={tmp_path}",
            "train.batch_size=8",
            "data.max_prompt=6",
            "sampling.max_new_tokens=5",
            "model.compute_dtype=float32",
        ],
    )
    sharding = Sharding(make_mesh(*mesh))
    model = make_model(config, model_shape(config), sharding)
    parts = by_kind(update_arrays(config, model))
    optimizer = make_optimizer(config.optimizer, 10)
    state = init_state(model, model.init(jax.random.key(0)), optimizer, config)

    def on_first(tree):
        return sum(x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(tree))

    assert parts["parameters"] == parts["gradients"] == on_first(state.params)
    assert parts["optimizer"] == on_first(state.opt_state)
    assert parts["teacher"] == on_first(state.teacher)
    laid_out = jax.jit(lambda params: lay_out_for_decoding(model, params)[1])(state.params)
    assert parts["decoding weights"] == on_first(laid_out)
    # prompts are padded to a multiple of 8
    cache = jax.jit(lambda: model.init_cache(8, 8 + 5))()
    assert parts["KV cache"] == on_first((cache.keys, cache.values))
