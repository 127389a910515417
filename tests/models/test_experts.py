"""Mixtures of experts against a loop over tokens in float64, and split over devices."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdft_jax.kernels.grouped_matmul import grouped_matmul
from sdft_jax.models import experts
from sdft_jax.models.architecture import ExpertSizes
from sdft_jax.models.block import gated_function
from sdft_jax.models.experts import Routing, Weights, mixture, no_decisions, route, with_decision
from sdft_jax.sharding import Rules, Sharding, make_mesh, single_device

SIZES = ExpertSizes(count=4, per_token=2, width=6, normalized=True)


def random_inputs(batch=2, length=5, width=8, sizes=SIZES, biases=False):
    """Return activations and weights; with `biases`, also factors and biases."""
    e, m = sizes.count, sizes.width
    shapes = [(batch, length, width), (width, e), (e, width, m), (e, width, m), (e, m, width)]
    shapes += [(e,), (e,), (e, m), (e, m), (e, width)] if biases else []
    keys = jax.random.split(jax.random.key(0), len(shapes))
    x, *weights = (jax.random.normal(key, shape) for key, shape in zip(keys, shapes, strict=True))
    return x, Weights(*weights)


def expected_mixture(x, weights, sizes):
    """Return the output in float64, token by token."""
    x = np.asarray(x, np.float64)
    arrays = {name: 0.0 if a is None else np.asarray(a, np.float64) for name, a in weights._asdict().items()}
    zeros = np.zeros((sizes.count, 1))
    router, gate, up, down = (arrays[name] for name in ("router", "gate", "up", "down"))
    gate_bias, up_bias, down_bias = (
        arrays[f"{name}_bias"] if np.ndim(arrays[f"{name}_bias"]) else zeros
        for name in ("gate", "up", "down")
    )
    scale = np.ones(sizes.count) if weights.scale is None else arrays["scale"]
    out = np.zeros_like(x)
    for at in np.ndindex(*x.shape[:2]):
        logits = x[at] @ router + arrays["router_bias"]
        p = np.exp(logits - logits.max())
        p /= p.sum()
        chosen = np.argsort(-p)[: sizes.per_token]
        total = p[chosen].sum() if sizes.normalized else 1.0
        for expert in chosen:
            inner, outer = x[at] @ gate[expert] + gate_bias[expert], x[at] @ up[expert] + up_bias[expert]
            factor = 1.0
            if sizes.clamped:
                factor, limit = sizes.clamped
                inner, outer = np.minimum(inner, limit), np.clip(outer, -limit, limit) + 1
            hidden = inner / (1 + np.exp(-factor * inner)) * outer
            out[at] += p[expert] / total * scale[expert] * (hidden @ down[expert] + down_bias[expert])
    return out


@functools.partial(jax.jit, static_argnums=(2, 3))
def run(x, weights, sizes=SIZES, sharding=single_device(), router_x=None):  # noqa: B008
    return mixture(x, weights, sizes, gated_function("silu", sizes.clamped), sharding, router_x)


@pytest.mark.parametrize(
    ("normalized", "batch", "length"), [(True, 2, 5), (False, 2, 5), (True, 2, 1), (True, 701, 1)]
)
def test_equals_a_loop_over_tokens(normalized, batch, length):
    """One token per row is decoded, where every expert computes every row of a batch of at most 700."""
    sizes = ExpertSizes(4, 3, 6, normalized)
    x, weights = random_inputs(batch, length, sizes=sizes)
    out, routing = run(x, weights, sizes)
    np.testing.assert_allclose(out, expected_mixture(x, weights, sizes), atol=1e-4, rtol=1e-5)
    assert routing.experts.shape == (batch, length, 3)
    np.testing.assert_allclose(jnp.sum(routing.probabilities, axis=-1), 1, rtol=1e-6)


@pytest.mark.parametrize("length", [5, 1])
def test_factors_biases_and_a_clamped_swiglu(length):
    sizes = ExpertSizes(4, 3, 6, True, (1.702, 1.5))
    x, weights = random_inputs(length=length, sizes=sizes, biases=True)
    out, _ = run(x, weights, sizes)
    np.testing.assert_allclose(out, expected_mixture(x, weights, sizes), atol=1e-4, rtol=1e-5)


def test_no_token_is_dropped_if_all_choose_the_same_experts():
    x, weights = random_inputs()
    x = jnp.abs(x)
    weights = weights._replace(router=jnp.broadcast_to(jnp.array([[0.0, 9.0, -9.0, 5.0]]), (8, 4)))
    out, routing = run(x, weights)
    np.testing.assert_array_equal(routing.experts, np.broadcast_to([1, 3], (2, 5, 2)))
    np.testing.assert_allclose(out, expected_mixture(x, weights, SIZES), atol=1e-4, rtol=1e-5)


def test_the_router_is_float32_for_bfloat16_activations():
    """In bfloat16, the logits 8 and 8.03 would be equal, and the first expert chosen."""
    x = jnp.full((1, 1), 1.0, jnp.bfloat16)
    nothing = jnp.zeros((3, 1, 1))
    weights = Weights(jnp.array([[8.0, 8.03, 0.0]]), nothing, nothing, nothing)
    routing, weights = route(x, weights, ExpertSizes(3, 1, 1, False))
    assert routing.experts.tolist() == [[1]]
    assert weights.dtype == jnp.float32


def test_the_router_may_read_other_activations_than_the_experts():
    x, weights = random_inputs()
    other = jnp.flip(x, axis=1)
    _, routing = run(x, weights, router_x=other)
    np.testing.assert_array_equal(routing.experts, jnp.flip(run(x, weights)[1].experts, axis=1))


def test_an_expert_that_overflows_changes_no_row_that_did_not_choose_it():
    x, weights = random_inputs(length=1)
    weights = weights._replace(
        router=jnp.broadcast_to(jnp.array([[0.0, 9.0, -9.0, 5.0]]), (8, 4)), gate=weights.gate.at[0].set(1e38)
    )
    assert jnp.isfinite(run(jnp.abs(x), weights)[0]).all()


def test_gradients_of_biases_are_sums_in_float32_for_bfloat16_activations():
    """In bfloat16, a sum of ones stops at 256."""
    sizes, zeros = ExpertSizes(1, 1, 2, False), jnp.zeros((1, 3, 2), jnp.bfloat16)
    bias = jnp.zeros((1, 3), jnp.bfloat16)

    def loss(bias):
        weights = Weights(jnp.zeros((3, 1)), zeros, zeros, zeros.swapaxes(1, 2), down_bias=bias)
        return jnp.sum(run(jnp.ones((2, 1024, 3), jnp.bfloat16), weights, sizes)[0].astype(jnp.float32))

    assert jax.grad(loss)(bias).tolist() == [[2048.0] * 3]


@pytest.mark.parametrize(("mesh", "length"), [((1, 1, 1, 4), 5), ((2, 1, 2, 2), 5), ((2, 1, 2, 2), 1)])
def test_split_over_devices_gives_the_same_output_and_gradients(mesh, length):
    x, weights = random_inputs(batch=4, length=length, biases=True)
    sharding = Sharding(make_mesh(*mesh, devices=jax.devices()[: np.prod(mesh)]), Rules())

    def loss(x, weights, router_x, sharding):
        out, routing = run(x, weights, sharding=sharding, router_x=router_x)
        return jnp.sum(jnp.tanh(out)) + jnp.sum(routing.probabilities**2), out

    def results(sharding):
        both = jax.value_and_grad(functools.partial(loss, sharding=sharding), (0, 1, 2), has_aux=True)
        return jax.device_get(jax.jit(both)(x, weights, jnp.flip(x, axis=1)))

    for ours, theirs in zip(*(jax.tree.leaves(results(s)) for s in (sharding, single_device())), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 2e-5), ("bfloat16", 0.05)])
def test_blocks_of_rows_on_devices_with_different_experts(monkeypatch, dtype, tolerance):
    """As on a GPU, where XLA's own product of groups takes too much memory."""
    x, weights = random_inputs(batch=4, length=9, biases=True)
    x, weights = x.astype(dtype), jax.tree.map(lambda w: w.astype(dtype), weights)
    weights = weights._replace(router=weights.router.astype("float32"))
    sharding = Sharding(make_mesh(2, 1, 2, 2, devices=jax.devices()[:8]), Rules())

    def results(sharding):
        def loss(x, weights):
            out, _ = mixture(x, weights, SIZES, gated_function("silu", None), sharding)
            return jnp.sum(jnp.tanh(out.astype(jnp.float32))), out

        return jax.device_get(jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(x, weights))

    expected = results(single_device())
    monkeypatch.setattr(experts, "grouped_matmul", lambda *args: grouped_matmul(*args[:3], "gpu", args[4]))
    for ours, theirs in zip(*map(jax.tree.leaves, (results(sharding), expected)), strict=True):
        assert ours.dtype == theirs.dtype
        scale = np.abs(theirs.astype(np.float32)).max()
        np.testing.assert_allclose(ours.astype(np.float32), theirs.astype(np.float32), atol=tolerance * scale)


def test_decisions_count_the_tokens_that_count():
    sizes = ExpertSizes(3, 2, 1, False)
    routing = Routing(jnp.array([[[0, 2], [1, 0]]]), jnp.array([[[0.5, 0.0, 0.5], [0.25, 0.75, 0.0]]]))
    decisions = with_decision(no_decisions(2, (1, 2), sizes), 1, routing, jnp.array([[True, False]]))
    np.testing.assert_array_equal(decisions.experts[1], routing.experts)
    np.testing.assert_array_equal(decisions.load, [[[0, 0, 0]], [[1, 0, 1]]])
    np.testing.assert_array_equal(decisions.probabilities[1], [[0.5, 0, 0.5]])
    entropies = [np.log(2) / 2, -(0.25 * np.log(0.25) + 0.75 * np.log(0.75)) / 2]
    np.testing.assert_allclose(decisions.entropy, [entropies], rtol=1e-6)
