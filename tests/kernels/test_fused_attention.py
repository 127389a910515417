"""Kernels against plain attention: splash interpreted, cuDNN's arguments on JAX's own implementation."""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdft_jax.kernels import fused_attention as module
from sdft_jax.kernels.attention import attention
from sdft_jax.kernels.fused_attention import choose_kernel, fused_attention
from sdft_jax.plan.topologies import parse_topology, topology_devices
from sdft_jax.sharding import Sharding, make_mesh
from sdft_jax.sharding.rules import Rules

SCALE = 0.3


@pytest.fixture(autouse=True)
def _(monkeypatch):
    """cuDNN runs on no CPU; what it is given does."""
    monkeypatch.setattr(module, "_cudnn", functools.partial(module._cudnn, implementation="xla"))
    monkeypatch.setattr(module, "LARGEST_TILE", 128)  # several tiles even for short sequences


def random_inputs(length, heads=4, keys=2, batch=4, dtype=jnp.float32, seed=0):
    """Queries, keys, values and a mask: left padding, right padding, both, none."""
    shapes = [(batch, length, n, 16) for n in (heads, keys, keys)]
    draws = [jax.random.normal(jax.random.key(seed + i), s).astype(dtype) for i, s in enumerate(shapes)]
    mask = np.ones((batch, length), bool)
    mask[0, : length // 3] = False
    mask[1, length // 2 :] = False
    mask[2, : length // 4] = mask[2, length - length // 4 :] = False
    return draws, jnp.asarray(mask)


def plain(qkv, mask, window):
    limit = None if window is None else jnp.int32(window)
    return attention(*qkv, mask, limit, SCALE, 64)


def value_and_gradients(attend, qkv, mask):
    """Of a random function of what real tokens read; padding carries no loss, as in training."""
    factor = jax.random.normal(jax.random.key(9), qkv[0].shape) * mask[:, :, None, None]

    def total(qkv):
        out = attend(qkv).astype(jnp.float32)
        return jnp.sum(jnp.sin(out) * factor), out

    (_, out), gradients = jax.jit(jax.value_and_grad(total, has_aux=True))(qkv)
    return [np.where(mask[:, :, None, None], x, 0) for x in (out, *gradients)], out


@pytest.mark.parametrize("kernel", ["splash", "cudnn"])
@pytest.mark.parametrize("window", [None, 1, 20, 200])
@pytest.mark.parametrize("length", [40, 200])
def test_values_and_gradients_are_those_of_plain_attention(kernel, window, length):
    qkv, mask = random_inputs(length)
    ours, everything = value_and_gradients(
        lambda x: fused_attention(*x, mask, window, SCALE, kernel, None), qkv, mask
    )
    expected, _ = value_and_gradients(lambda x: plain(x, mask, window), qkv, mask)
    for got, wanted in zip(ours, expected, strict=True):
        np.testing.assert_allclose(got, wanted, atol=2e-5)
    assert np.isfinite(everything).all(), "padding must not carry NaNs into sums that weigh it with 0"


@pytest.mark.parametrize("kernel", ["splash", "cudnn"])
def test_padding_takes_and_gives_nothing(kernel):
    """Other contents of padding change neither values nor gradients of real tokens."""
    qkv, mask = random_inputs(64)
    real = mask[:, :, None, None]
    other = [jnp.where(real, x, 7.0) for x in qkv]
    results = [
        value_and_gradients(lambda x: fused_attention(*x, mask, None, SCALE, kernel, None), inputs, mask)[0]
        for inputs in (qkv, other)
    ]
    for a, b in zip(*results, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_no_gradient_is_scattered():
    """A GPU would add each of its numbers by an atomic operation."""
    qkv, mask = random_inputs(40)

    def total(qkv):
        return fused_attention(*qkv, mask, None, SCALE, "cudnn", None).sum()

    assert "scatter" not in jax.jit(jax.grad(total)).lower(qkv).as_text()


@pytest.mark.parametrize("kernel", ["splash", "cudnn"])
@pytest.mark.parametrize(
    ("mesh", "rules"),
    [
        ({"fsdp": 4, "tensor": 2}, Rules()),
        ({"data": 2, "fsdp": 2}, Rules()),
        ({"data": 2, "tensor": 4}, Rules(kv_heads=None)),  # more shards than key heads
        ({"fsdp": 2, "tensor": 2}, Rules(heads=None)),
        ({"fsdp": 2, "tensor": 4}, Rules(heads=None, kv_heads=None, sequence="tensor")),
    ],
)
def test_devices_with_their_own_rows_and_heads_get_the_same(kernel, mesh, rules):
    qkv, mask = random_inputs(40)
    sharding = Sharding(make_mesh(**mesh), rules)
    ours, _ = value_and_gradients(lambda x: fused_attention(*x, mask, 20, SCALE, kernel, sharding), qkv, mask)
    expected, _ = value_and_gradients(lambda x: plain(x, mask, 20), qkv, mask)
    for got, wanted in zip(ours, expected, strict=True):
        np.testing.assert_allclose(got, wanted, atol=2e-5)


@pytest.mark.parametrize("kernel", ["splash", "cudnn"])
def test_bfloat16_is_as_close_to_float32_as_plain_attention_is(kernel):
    qkv, mask = random_inputs(200, dtype=jnp.bfloat16)
    wide = [x.astype(jnp.float32) for x in qkv]
    exact, _ = value_and_gradients(lambda x: plain(x, mask, None), wide, mask)
    error = {}
    for name, attend in {
        "plain": lambda x: plain(x, mask, None),
        kernel: lambda x: fused_attention(*x, mask, None, SCALE, kernel, None),
    }.items():
        got, _ = value_and_gradients(attend, qkv, mask)
        error[name] = [np.linalg.norm(a.astype(np.float32) - b) for a, b in zip(got, exact, strict=True)]
    assert all(ours < 2 * theirs for ours, theirs in zip(error[kernel], error["plain"], strict=True)), error


@pytest.mark.parametrize("kernel", ["splash", "cudnn"])
def test_a_row_of_padding_is_finite(kernel):
    qkv, mask = random_inputs(40)
    mask = mask.at[3].set(False)
    (_, *gradients), everything = value_and_gradients(
        lambda x: fused_attention(*x, mask, None, SCALE, kernel, None), qkv, mask
    )
    assert np.isfinite(everything).all()
    assert all(np.isfinite(x).all() for x in gradients)


def device(platform, version=""):
    client = types.SimpleNamespace(platform_version=version)
    return types.SimpleNamespace(platform=platform, client=client)


@pytest.mark.parametrize(
    ("choice", "where", "dtype", "head_dim", "expected"),
    [
        ("auto", device("tpu"), "bfloat16", 64, "splash"),
        ("auto", device("tpu"), "float32", 256, "splash"),
        ("auto", device("gpu", "PJRT C API\ncuda 12090"), "bfloat16", 128, "cudnn"),
        ("auto", device("gpu", "cuda 12090"), "float32", 128, "xla"),
        ("auto", device("gpu", "cuda 12090"), "bfloat16", 256, "xla"),
        ("auto", device("gpu", "cuda 12090"), "bfloat16", 20, "xla"),
        ("auto", device("gpu", "rocm 60300"), "bfloat16", 128, "xla"),
        ("auto", device("cpu"), "bfloat16", 128, "xla"),
        ("xla", device("tpu"), "bfloat16", 128, "xla"),
        ("splash", device("cpu"), "float32", 128, "splash"),
    ],
)
def test_auto_is_the_kernel_of_the_device(choice, where, dtype, head_dim, expected):
    assert choose_kernel(choice, where, dtype, head_dim) == expected


@pytest.mark.parametrize("name", ["v5e:2x2", "v6e:2x2", "v5p:2x2x1"])
@pytest.mark.parametrize(("head_dim", "window"), [(64, None), (128, 256)])
def test_splash_is_compiled_for_tpus_without_scores(name, head_dim, window):
    """Forward and backward; the temporary memory is far below the scores' [2, 2, 1100, 1100] float32."""
    pytest.importorskip("libtpu")
    sharding = Sharding(make_mesh(fsdp=2, tensor=2, devices=topology_devices(parse_topology(name))))

    def shape(*sizes, dtype=jnp.bfloat16):
        axes = ("batch", None, "heads", None)[: len(sizes)]
        return jax.ShapeDtypeStruct(sizes, dtype, sharding=sharding.named(*axes))

    def total(q, k, v, mask):
        out = fused_attention(q, k, v, mask, window, SCALE, "splash", sharding)
        return jnp.sum(out.astype(jnp.float32))

    shapes = [shape(4, 1100, heads, head_dim) for heads in (4, 2, 2)]
    compiled = jax.jit(jax.grad(total, (0, 1, 2))).lower(*shapes, shape(4, 1100, dtype=bool)).compile()
    assert "tpu_custom_call" in compiled.as_text()
    assert compiled.memory_analysis().temp_size_in_bytes < 2 * 2 * 1100 * 1100 * 4
