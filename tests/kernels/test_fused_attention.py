"""Fused kernels compared with plain attention: splash interpreted, cuDNN replaced by JAX's implementation."""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdft_jax.kernels import fused_attention as module
from sdft_jax.kernels.attention import AttentionCall, attention
from sdft_jax.kernels.fused_attention import choose_kernel, fused_attention
from sdft_jax.plan.topologies import parse_topology, topology_devices
from sdft_jax.sharding import Sharding, make_mesh, single_device
from sdft_jax.sharding.rules import Rules

SCALE = 0.3


@pytest.fixture(autouse=True)
def kernels_on_a_cpu(monkeypatch):
    """Replace cuDNN, which does not run on a CPU, by JAX's implementation with the same arguments."""
    monkeypatch.setattr(module, "_cudnn", functools.partial(module._cudnn, implementation="xla"))
    monkeypatch.setattr(module, "LARGEST_TILE", 128)  # several tiles even for short sequences


def random_inputs(length, heads=4, keys=2, batch=4, dtype=jnp.float32, seed=0):
    """Return queries, keys, values, and a mask with left padding, right padding, both and none."""
    shapes = [(batch, length, n, 16) for n in (heads, keys, keys)]
    qkv = [jax.random.normal(jax.random.key(seed + i), s).astype(dtype) for i, s in enumerate(shapes)]
    mask = np.ones((batch, length), bool)
    mask[0, : length // 3] = False
    mask[1, length // 2 :] = False
    mask[2, : length // 4] = mask[2, length - length // 4 :] = False
    return qkv, jnp.asarray(mask)


def plain(qkv, mask, window):
    """Return plain attention."""
    window = None if window is None else jnp.int32(window)
    return attention(AttentionCall(*qkv, mask, window, SCALE), 64)


def fused(qkv, mask, window, kernel, sharding=None):
    """Return the attention of a kernel, on one device if there is no sharding."""
    return fused_attention(AttentionCall(*qkv, mask, window, SCALE), kernel, sharding or single_device())


def value_and_gradients(attend, qkv, mask):
    """Return the attention of real tokens and its gradients under a random loss, and that of all tokens."""
    factor = jax.random.normal(jax.random.key(9), qkv[0].shape) * mask[:, :, None, None]

    def total(qkv):
        out = attend(qkv).astype(jnp.float32)
        return jnp.sum(jnp.sin(out) * factor), out

    (_, out), gradients = jax.jit(jax.value_and_grad(total, has_aux=True))(qkv)
    return [np.where(mask[:, :, None, None], x, 0) for x in (out, *gradients)], out


@pytest.mark.parametrize("kernel", ["splash", "cudnn"])
@pytest.mark.parametrize("window", [None, 1, 20, 200])
@pytest.mark.parametrize("length", [40, 200])
def test_values_and_gradients_equal_those_of_plain_attention(kernel, window, length):
    qkv, mask = random_inputs(length)
    actual, with_padding = value_and_gradients(lambda x: fused(x, mask, window, kernel), qkv, mask)
    expected, _ = value_and_gradients(lambda x: plain(x, mask, window), qkv, mask)
    for ours, theirs in zip(actual, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-5)
    assert np.isfinite(with_padding).all(), "padding must not be NaN: sums multiply it by 0"


@pytest.mark.parametrize("kernel", ["splash", "cudnn"])
def test_padding_has_no_influence(kernel):
    """Different numbers in padding change neither values nor gradients of real tokens."""
    qkv, mask = random_inputs(64)
    real = mask[:, :, None, None]
    other = [jnp.where(real, x, 7.0) for x in qkv]
    results = [
        value_and_gradients(lambda x: fused(x, mask, None, kernel), inputs, mask)[0]
        for inputs in (qkv, other)
    ]
    for a, b in zip(*results, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_the_gradient_contains_no_scatter():
    """A scatter on a GPU adds each number by an atomic operation."""
    qkv, mask = random_inputs(40)

    def total(qkv):
        return fused(qkv, mask, None, "cudnn").sum()

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
def test_a_mesh_has_the_values_and_gradients_of_plain_attention(kernel, mesh, rules):
    qkv, mask = random_inputs(40)
    sharding = Sharding(make_mesh(**mesh), rules)
    actual, _ = value_and_gradients(lambda x: fused(x, mask, 20, kernel, sharding), qkv, mask)
    expected, _ = value_and_gradients(lambda x: plain(x, mask, 20), qkv, mask)
    for ours, theirs in zip(actual, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-5)


@pytest.mark.parametrize("kernel", ["splash", "cudnn"])
def test_the_bfloat16_error_is_less_than_twice_that_of_plain_attention(kernel):
    qkv, mask = random_inputs(200, dtype=jnp.bfloat16)
    wide = [x.astype(jnp.float32) for x in qkv]
    exact, _ = value_and_gradients(lambda x: plain(x, mask, None), wide, mask)
    error = {}
    for name, attend in {
        "plain": lambda x: plain(x, mask, None),
        kernel: lambda x: fused(x, mask, None, kernel),
    }.items():
        actual, _ = value_and_gradients(attend, qkv, mask)
        error[name] = [np.linalg.norm(a.astype(np.float32) - b) for a, b in zip(actual, exact, strict=True)]
    assert all(ours < 2 * theirs for ours, theirs in zip(error[kernel], error["plain"], strict=True)), error


@pytest.mark.parametrize("kernel", ["splash", "cudnn"])
def test_a_row_of_padding_has_finite_values_and_gradients(kernel):
    qkv, mask = random_inputs(40)
    mask = mask.at[3].set(False)
    (_, *gradients), with_padding = value_and_gradients(lambda x: fused(x, mask, None, kernel), qkv, mask)
    assert np.isfinite(with_padding).all()
    assert all(np.isfinite(x).all() for x in gradients)


def fake_device(platform, version=""):
    """Return an object with the attributes of a device that `choose_kernel` reads."""
    client = types.SimpleNamespace(platform_version=version)
    return types.SimpleNamespace(platform=platform, client=client)


@pytest.mark.parametrize(
    ("choice", "device", "dtype", "head_dim", "expected"),
    [
        ("auto", fake_device("tpu"), "bfloat16", 64, "splash"),
        ("auto", fake_device("tpu"), "float32", 256, "splash"),
        ("auto", fake_device("gpu", "PJRT C API\ncuda 12090"), "bfloat16", 128, "cudnn"),
        ("auto", fake_device("gpu", "cuda 12090"), "float32", 128, "xla"),
        ("auto", fake_device("gpu", "cuda 12090"), "bfloat16", 256, "xla"),
        ("auto", fake_device("gpu", "cuda 12090"), "bfloat16", 20, "xla"),
        ("auto", fake_device("gpu", "rocm 60300"), "bfloat16", 128, "xla"),
        ("auto", fake_device("cpu"), "bfloat16", 128, "xla"),
        ("xla", fake_device("tpu"), "bfloat16", 128, "xla"),
        ("splash", fake_device("cpu"), "float32", 128, "splash"),
    ],
)
def test_auto_chooses_the_kernel_of_the_device(choice, device, dtype, head_dim, expected):
    assert choose_kernel(choice, device, dtype, head_dim) == expected


@pytest.mark.parametrize("name", ["v5e:2x2", "v6e:2x2", "v5p:2x2x1"])
@pytest.mark.parametrize(("head_dim", "window"), [(64, None), (128, 256)])
def test_splash_compiles_for_tpus_and_stores_no_scores(name, head_dim, window):
    """Temporary memory, with the backward pass, is far below the scores' [2, 2, 1100, 1100] in float32."""
    pytest.importorskip("libtpu")
    sharding = Sharding(make_mesh(fsdp=2, tensor=2, devices=topology_devices(parse_topology(name))))

    def shape(*sizes, dtype=jnp.bfloat16):
        axes = ("batch", None, "heads", None)[: len(sizes)]
        return jax.ShapeDtypeStruct(sizes, dtype, sharding=sharding.named(*axes))

    def total(q, k, v, mask):
        out = fused((q, k, v), mask, window, "splash", sharding)
        return jnp.sum(out.astype(jnp.float32))

    shapes = [shape(4, 1100, heads, head_dim) for heads in (4, 2, 2)]
    compiled = jax.jit(jax.grad(total, (0, 1, 2))).lower(*shapes, shape(4, 1100, dtype=bool)).compile()
    assert "tpu_custom_call" in compiled.as_text()
    assert compiled.memory_analysis().temp_size_in_bytes < 2 * 2 * 1100 * 1100 * 4
