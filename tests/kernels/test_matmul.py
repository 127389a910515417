"""The products of the CPU and of other platforms: values, gradients, precision, rematerialization."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdft_jax.kernels.matmul import matmul

SPECS = {
    "btd,dnh->btnh": ((2, 3, 5), (5, 4, 6)),
    "bthk,hkd->btd": ((2, 3, 4, 6), (4, 6, 5)),
    "btd,df->btf": ((2, 3, 5), (5, 7)),
}


def multiply(platform):
    """Return the product (spec, x, weight) for a platform; that of a TPU also runs on a CPU."""
    return lambda spec, x, weight: matmul(spec, x, weight, platform)


def loss(multiply, spec):
    """Return a loss (x, weight) of a product."""
    return lambda x, weight: jnp.sum(jnp.sin(multiply(spec, x, weight).astype(jnp.float32)))


@pytest.mark.parametrize("platform", ["cpu", "tpu"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("spec", SPECS)
def test_values_and_gradients_equal_those_of_einsum(spec, dtype, platform):
    product = multiply(platform)
    rng = np.random.default_rng()
    arrays = [jnp.asarray(rng.normal(size=shape), dtype) for shape in SPECS[spec]]
    np.testing.assert_array_equal(product(spec, *arrays), jnp.einsum(spec, *arrays))
    ours, theirs = (jax.grad(loss(f, spec), argnums=(0, 1))(*arrays) for f in (product, jnp.einsum))
    for actual, expected in zip(ours, theirs, strict=True):
        assert actual.dtype == expected.dtype == dtype
        tolerance = 1e-5 if dtype == "float32" else 2e-2
        np.testing.assert_allclose(
            *(np.asarray(x, np.float32) for x in (actual, expected)), tolerance, tolerance
        )


@pytest.mark.parametrize("spec", SPECS)
def test_the_weight_gradient_has_a_transposition_only_outside_the_cpu_path(spec):
    arrays = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in SPECS[spec]]
    cpu, tpu, einsum = (
        str(jax.make_jaxpr(jax.grad(loss(product, spec), argnums=1))(*arrays))
        for product in (multiply("cpu"), multiply("tpu"), jnp.einsum)
    )
    assert " transpose" not in cpu
    assert " transpose" in tpu
    assert " transpose" in einsum


@pytest.mark.parametrize("platform", ["cpu", "tpu"])
def test_gradients_have_the_default_precision_at_the_time_of_tracing_the_product(platform):
    arrays = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in SPECS["btd,df->btf"]]

    def precise(x, weight):
        with jax.default_matmul_precision("float32"):
            return loss(multiply(platform), "btd,df->btf")(x, weight)

    jaxpr = str(jax.make_jaxpr(jax.grad(precise, argnums=(0, 1)))(*arrays))
    assert jaxpr.count("dot_general[") == jaxpr.count("precision=(Precision.HIGHEST, Precision.HIGHEST)") == 3


@pytest.mark.parametrize("platform", ["cpu", "tpu"])
@pytest.mark.parametrize(("policy", "products"), [(None, 4), ("dots_saveable", 3)])
def test_a_rematerialization_policy_applies_to_the_product(policy, products, platform):
    arrays = [jnp.ones(shape) for shape in SPECS["btd,df->btf"]]
    policy = policy and getattr(jax.checkpoint_policies, policy)
    checkpointed = jax.checkpoint(loss(multiply(platform), "btd,df->btf"), policy=policy)
    jaxpr = str(jax.make_jaxpr(jax.grad(checkpointed, argnums=(0, 1)))(*arrays))
    assert jaxpr.count("dot_general[") == products
