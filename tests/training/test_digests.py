"""Digests depend on every bit of an array and on its position, and not on its sharding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from sdft_jax.sharding import make_mesh
from sdft_jax.training import digests
from sdft_jax.training.digests import describe, difference, specs

DTYPES = ["float32", "bfloat16", "float16", "float8_e4m3fn", "int32", "uint32", "int8", "uint8", "bool"]


def digest(x) -> str:
    return describe({"x": jnp.asarray(x)})["x"][1]


def reference(bits: np.ndarray) -> str:
    """Return the digest of a matrix of 32-bit words, by Python's integers."""
    total, golden, word = 0, 0x9E3779B1, 2**32
    for (row, column), value in np.ndenumerate(bits):
        position = (row * golden + column) % word
        x = int(value) ^ (position * golden % word)
        x = (x ^ x >> 16) * 0x85EBCA6B % word
        x = (x ^ x >> 13) * 0xC2B2AE35 % word
        total += x ^ x >> 16
    return f"{total % word:08x}"


def test_digest_is_the_sum_of_the_elements_hashes():
    values = np.random.default_rng(0).standard_normal((5, 7)).astype(np.float32)
    assert digest(values) == reference(values.view(np.uint32))


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_flipped_bit_changes_the_digest(dtype):
    values = np.asarray(jnp.asarray(np.arange(12).reshape(3, 4) % 2, dtype))
    before = digest(values)
    bits = 1 if dtype == "bool" else 8 * values.dtype.itemsize
    for bit in range(bits):
        changed = bytearray(values.tobytes())
        changed[5 * values.dtype.itemsize + bit // 8] ^= 1 << bit % 8
        assert digest(np.frombuffer(bytes(changed), values.dtype).reshape(3, 4)) != before


@pytest.mark.parametrize("dtype", ["int4", "uint4", "int2", "float4_e2m1fn"])
def test_values_of_less_than_a_byte_have_digests(dtype):
    values = np.arange(6).reshape(2, 3) % 2
    assert len({digest(jnp.asarray(x, dtype)) for x in (values, 1 - values, values * 0)}) == 3
    assert digest(jnp.zeros((), dtype)) == digest(jnp.zeros((), "int32"))


@pytest.mark.parametrize("dtype", ["float64", "int64"])
def test_both_words_of_eight_bytes_count(dtype):
    with (jax if hasattr(jax, "enable_x64") else jax.experimental).enable_x64(True):  # jax 0.7
        values = np.arange(3, dtype=dtype)
        others = [(values.view(np.uint64) ^ np.uint64(1 << bit)).view(dtype) for bit in (0, 63)]
        assert len({digest(x) for x in (values, *others)}) == 3


def test_arrays_without_elements_have_a_digest():
    assert digest(np.zeros((0, 3), np.float32)) == "00000000"


def test_digests_are_compiled_once():
    tree = {"a": jnp.zeros(7), "b": jnp.ones((3, 5), jnp.bfloat16)}
    describe(tree)
    before = digests._digests._cache_size()
    with jax.transfer_guard_host_to_device("disallow"):
        describe(jax.tree.map(lambda x: x.copy(), tree))
    assert digests._digests._cache_size() == before


def test_swapped_elements_signs_and_shapes_change_the_digest():
    values = np.arange(12, dtype=np.float32).reshape(3, 4)
    others = [values[::-1], values[:, ::-1], values.T, values.reshape(4, 3), -values, np.zeros_like(values)]
    assert len({digest(values), *map(digest, others)}) == len(others) + 1
    signs = np.array([0.0, 0.0, -0.0, -0.0], np.float32)
    assert len({digest(signs), digest(-signs), digest(abs(signs))}) == 3


def test_nan_has_a_digest():
    assert digest([np.nan, 1.0]) == digest([np.nan, 1.0])


@pytest.mark.parametrize("spec", [(), ("fsdp",), (("data", "fsdp"), "tensor"), (None, "tensor")])
def test_digest_does_not_depend_on_the_sharding(spec):
    values = np.random.default_rng(1).standard_normal((8, 6)).astype(np.float32)
    sharding = NamedSharding(make_mesh(data=2, fsdp=2, tensor=2), PartitionSpec(*spec))
    assert digest(jax.device_put(values, sharding)) == digest(values)


def test_first_difference_is_named():
    tree = {"a": jnp.zeros(3), "layers": {"q": jnp.ones((2, 3), jnp.bfloat16)}}
    saved = describe(tree)
    assert {name: spec for name, (spec, _) in saved.items()} == {
        "a": "float32[3]",
        "layers/q": "bfloat16[2,3]",
    }
    assert specs(tree) == specs(jax.eval_shape(lambda: tree))
    assert difference(tree, saved) is None
    assert difference(tree | {"a": jnp.ones(3)}, saved) == "a"
    assert difference({"layers": {"q": jnp.zeros((2, 3), jnp.bfloat16)}}, saved) == "layers/q"
