"""The norms with the casts of each family, and the block without its weights."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import PartitionSpec as P

from make_fixtures import CASES
from sdft_jax.models import architecture_from_dict
from sdft_jax.models.block import Block, block_structure, embedding_scale, rms_norm
from sdft_jax.sharding import Rules, Sharding, make_mesh, single_device


def test_rms_norm_normalizes_one_or_two_axes():
    x = np.random.default_rng(0).normal(size=(2, 3, 4, 8)).astype(np.float32)
    w = np.random.default_rng(1).normal(size=(4, 8)).astype(np.float32)
    architecture = architecture_from_dict(CASES["olmo2"])
    over_head = rms_norm(jnp.asarray(x), jnp.asarray(w[0]), architecture)
    np.testing.assert_allclose(
        over_head, x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * w[0], rtol=1e-5
    )
    over_all = rms_norm(jnp.asarray(x), jnp.asarray(w), architecture)
    np.testing.assert_allclose(
        over_all, x / np.sqrt((x**2).mean((2, 3), keepdims=True) + 1e-6) * w, rtol=1e-5
    )


@pytest.mark.parametrize("case", ["qwen3", "olmo3", "gemma3"])
def test_bfloat16_casts_are_the_same_as_in_transformers(case):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(1, 5, 64)), jnp.bfloat16)
    w = jnp.asarray(np.random.default_rng(1).normal(size=64), jnp.bfloat16)
    architecture = architecture_from_dict(CASES[case])
    wide = x.astype(jnp.float32)
    unit = wide / jnp.sqrt((wide**2).mean(-1, keepdims=True) + 1e-6)
    expected = {
        "qwen3": w[None, None] * unit.astype(jnp.bfloat16),
        "olmo3": (w.astype(jnp.float32)[None, None] * unit).astype(jnp.bfloat16),
        "gemma3": (unit * (1.0 + w.astype(jnp.float32)[None, None])).astype(jnp.bfloat16),
    }[case]
    out = rms_norm(x, w, architecture)
    assert out.dtype == jnp.bfloat16
    assert float((out == expected).mean()) > 0.98  # rsqrt and division may round differently


def test_the_embedding_scale_of_gemma_is_rounded_to_the_compute_dtype():
    gemma = dataclasses.replace(architecture_from_dict(CASES["gemma3"]), hidden_size=3072)
    assert float(embedding_scale(gemma, jnp.bfloat16)) == 55.5
    assert float(embedding_scale(gemma, jnp.float32)) == pytest.approx(55.4256, abs=1e-4)
    assert embedding_scale(architecture_from_dict(CASES["qwen2"]), jnp.float32) is None


def test_a_structure_and_weights_are_merged_into_a_block():
    architecture = architecture_from_dict(CASES["qwen2"])
    weights = {t.name: jnp.full(t.shape(architecture.sizes), 0.5) for t in architecture.layer_tensors}
    structure = block_structure(architecture, single_device())
    assert structure is block_structure(architecture, single_device())
    block = nnx.merge(structure, weights)
    assert isinstance(block, Block)
    for tensor in architecture.layer_tensors:
        np.testing.assert_array_equal(getattr(block, tensor.name)[...], weights[tensor.name])


def test_sequence_parallelism_splits_heads_in_attention_and_positions_after_it():
    sharding = Sharding(make_mesh(2, 2, 2), Rules(sequence="tensor"))
    architecture = architecture_from_dict(CASES["qwen3"])
    weights = {t.name: jnp.full(t.shape(architecture.sizes), 0.5) for t in architecture.layer_tensors}
    block = nnx.merge(block_structure(architecture, sharding), weights)
    x = jnp.ones((4, 6, architecture.hidden_size))
    angles = jnp.ones((4, 6, architecture.head_dim // 2))
    q, _, v = block.project(x, angles, angles)
    assert q.sharding.spec == v.sharding.spec == P(("data", "fsdp"), None, "tensor", None)
    combined = block.combine(x, q)[0].sharding
    assert combined.is_equivalent_to(sharding.named("batch", "sequence", None), ndim=3)
