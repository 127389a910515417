"""The product has the values and gradients of einsum, in every precision, and transposes no gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdft_jax.kernels.matmul import product

SPECS = {
    "btd,dnh->btnh": ((2, 3, 5), (5, 4, 6)),
    "bthk,hkd->btd": ((2, 3, 4, 6), (4, 6, 5)),
    "btd,df->btf": ((2, 3, 5), (5, 7)),
}


def loss(multiply, spec):
    return lambda x, weight: jnp.sum(jnp.sin(multiply(spec, x, weight).astype(jnp.float32)))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("spec", SPECS)
def test_values_and_gradients_are_those_of_einsum(spec, dtype):
    rng = np.random.default_rng()
    arrays = [jnp.asarray(rng.normal(size=shape), dtype) for shape in SPECS[spec]]
    np.testing.assert_array_equal(product(spec, *arrays), jnp.einsum(spec, *arrays))
    ours, theirs = (jax.grad(loss(f, spec), argnums=(0, 1))(*arrays) for f in (product, jnp.einsum))
    for found, expected in zip(ours, theirs, strict=True):
        assert found.dtype == expected.dtype == dtype
        tolerance = 1e-5 if dtype == "float32" else 2e-2
        np.testing.assert_allclose(
            *(np.asarray(x, np.float32) for x in (found, expected)), tolerance, tolerance
        )


@pytest.mark.parametrize("spec", SPECS)
def test_the_gradient_of_weights_is_one_product_without_a_transposition(spec):
    arrays = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in SPECS[spec]]
    gradient = jax.make_jaxpr(jax.grad(loss(product, spec), argnums=1))(*arrays)
    assert " transpose" not in str(gradient)
    assert " transpose" in str(jax.make_jaxpr(jax.grad(loss(jnp.einsum, spec), argnums=1))(*arrays))


def test_gradients_have_the_precision_in_force_where_the_product_was_traced():
    arrays = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in SPECS["btd,df->btf"]]

    def precise(x, weight):
        with jax.default_matmul_precision("float32"):
            return loss(product, "btd,df->btf")(x, weight)

    jaxpr = str(jax.make_jaxpr(jax.grad(precise, argnums=(0, 1)))(*arrays))
    assert jaxpr.count("dot_general[") == jaxpr.count("precision=(Precision.HIGHEST, Precision.HIGHEST)") == 3


@pytest.mark.parametrize(("policy", "products"), [(None, 4), ("dots_saveable", 3)])
def test_a_policy_of_rematerialisation_sees_its_product(policy, products):
    arrays = [jnp.ones(shape) for shape in SPECS["btd,df->btf"]]
    policy = policy and getattr(jax.checkpoint_policies, policy)
    kept = jax.checkpoint(loss(product, "btd,df->btf"), policy=policy)
    jaxpr = str(jax.make_jaxpr(jax.grad(kept, argnums=(0, 1)))(*arrays))
    assert jaxpr.count("dot_general[") == products
