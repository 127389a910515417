"""The placement of parameters while decoding: weights move before the decode loop, and never inside it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from sdft_jax.config.settings import SamplingConfig
from sdft_jax.kernels.platforms import UNROLLED
from sdft_jax.plan.hlo import collectives
from sdft_jax.sampling import compiled_sample, decoding_model, lay_out_for_decoding, make_key, row_keys
from sdft_jax.sampling.layout import prefill_model
from sdft_jax.sharding import Rules, Sharding, make_mesh, tree_shardings
from sdft_jax.types import Sequences, StopTokens
from tiny import EOS, PAD, tiny_model


def test_parameters_are_cast_and_whole_along_the_model_width():
    model, params = tiny_model(Sharding(make_mesh(1, 4, 2)))
    model = dataclasses.replace(model, compute_dtype="bfloat16")
    laid_out = jax.jit(lambda params: lay_out_for_decoding(model, params)[1])(params)
    assert laid_out["head"].sharding.spec == P(("tensor", "fsdp"))
    assert laid_out["layers"]["up"].sharding.spec == P(None, None, ("tensor", "fsdp"))
    jax.tree.map(
        lambda x, p: np.testing.assert_array_equal(np.float32(x), np.float32(p.astype(jnp.bfloat16))),
        laid_out,
        params,
    )
    assert {x.dtype for x in jax.tree.leaves(laid_out)} == {jnp.dtype("bfloat16")}


def test_models_of_decoding_and_prefill_differ_in_their_rules_only():
    model, _ = tiny_model(Sharding(make_mesh(1, 4, 2), Rules(sequence="tensor")))
    decoding, prefill = decoding_model(model), prefill_model(model)
    rules = Rules(batch=("data", "fsdp"), experts=None)  # the mesh has no axis of experts
    two = ("tensor", "fsdp")
    assert decoding.sharding.rules == dataclasses.replace(rules, embed=None, mlp=two, vocab=two)
    assert prefill.sharding.rules == rules
    assert dataclasses.replace(decoding, sharding=model.sharding) == model
    assert dataclasses.replace(prefill, sharding=model.sharding) == model


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("shape", [(1, 8, 1), (2, 2, 2)], ids=["fsdp", "data x fsdp x tensor"])
@pytest.mark.parametrize("layers", [2, UNROLLED + 1], ids=["layer by layer", "scan"])
def test_weights_move_before_the_loop_and_never_inside_it(tied, shape, layers):
    """Under the rules of training, a tied embedding was split again inside the loop and gathered for the head
    at every token.
    """
    sharding = Sharding(make_mesh(*shape))
    model, _ = tiny_model(sharding, tie_word_embeddings=tied, num_hidden_layers=layers)
    shapes = model.abstract_params()
    params = jax.tree.map(
        lambda x, placed: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=placed),
        shapes,
        tree_shardings(sharding, model.logical_axes(), shapes),
    )
    prompt = Sequences(
        jax.ShapeDtypeStruct((8, 6), jnp.int32, sharding=sharding.named("batch")),
        jax.ShapeDtypeStruct((8, 6), bool, sharding=sharding.named("batch")),
    )
    keys = jax.eval_shape(lambda: row_keys(make_key(0), 8))
    sampling, stop = SamplingConfig(max_new_tokens=5), StopTokens((EOS,), PAD)
    moved = collectives(
        compiled_sample.lower(model, params, prompt, keys, sampling, stop).compile().as_text()
    )
    before = sum(x.bytes for x in moved if "decode/while" not in x.scope)
    assert before > 32 * 32 * 4 / 2  # at least most of the embedding
    per_token = max((x.bytes / x.times for x in moved if "decode/while" in x.scope), default=0)
    assert per_token < 2 * 8 * 32 * 4  # a batch of hidden states or logits, there and back
