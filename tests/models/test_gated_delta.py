"""The gated delta rule compared with its recurrence in float64, and with transformers' own functions."""

import functools
import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdft_jax.models.gated_delta import (
    DeltaInputs,
    causal_convolution,
    gated_delta,
    gated_delta_chunks,
    gated_delta_step,
)

compiled = jax.jit(gated_delta)
NEEDS_TORCH = pytest.mark.skipif(not importlib.util.find_spec("torch"), reason="requires torch")


def random_inputs(length, rows=2, heads=3, key=8, value=5):
    """Return random inputs; the keys of neighbors are similar, so that the system of a chunk matters."""
    rng = np.random.default_rng(length)
    q, k = rng.normal(size=(2, rows, length, heads, key))
    k = k + 2 * rng.normal(size=(rows, 1, heads, key))
    v = rng.normal(size=(rows, length, heads, value))
    log_decay = -rng.exponential(0.2, size=(rows, length, heads))
    return DeltaInputs(q, k, v, log_decay, rng.uniform(size=(rows, length, heads)))


def recurrence(inputs, matrix, unit=True):
    """Return the outputs and the last matrix of the module's first equation, in NumPy's float64."""
    q, k, v, log_decay, beta = (np.asarray(x, np.float64) for x in inputs)
    if unit:
        q, k = (x / np.sqrt((x * x).sum(-1, keepdims=True) + 1e-6) for x in (q, k))
        q = q / np.sqrt(q.shape[-1])
    outputs = []
    for t in range(q.shape[1]):
        matrix = np.exp(log_decay[:, t])[..., None, None] * matrix
        error = v[:, t] - np.einsum("bgk,bgkp->bgp", k[:, t], matrix)
        matrix = matrix + np.einsum("bgk,bg,bgp->bgkp", k[:, t], beta[:, t], error)
        outputs.append(np.einsum("bgk,bgkp->bgp", q[:, t], matrix))
    return np.stack(outputs, axis=1), matrix


def float32(inputs):
    return DeltaInputs(*(jnp.asarray(x, jnp.float32) for x in inputs))


def test_the_worked_example():
    one = jnp.ones((1, 1, 1, 1))
    half = jnp.full((1, 1, 1), 0.5)
    inputs = DeltaInputs(one, one, 4 * one, jnp.log(half), half)
    for rule in (gated_delta_step, gated_delta_chunks):
        output, matrix = jax.jit(rule)(inputs, 2 * one)
        assert float(output[0, 0, 0, 0]) == pytest.approx(2.5)
        assert float(matrix[0, 0, 0, 0]) == pytest.approx(2.5)


@pytest.mark.parametrize("length", [1, 7, 64, 150])
def test_chunks_equal_the_recurrence(length):
    inputs = random_inputs(length)
    start = np.random.default_rng(1).normal(size=(2, 3, 8, 5))
    expected = recurrence(inputs, start)
    actual = compiled(float32(inputs), jnp.asarray(start, jnp.float32))
    for x, y in zip(actual, expected, strict=True):
        np.testing.assert_allclose(x, y, atol=2e-5)


@pytest.mark.parametrize("speed", [25, 100])
def test_fast_decay_loses_no_digits(speed):
    """The norm after the rule divides small outputs by their size, so that an error of 1e-6 may be 1e-3.

    The chunks of transformers, which subtract sums of the exponents, are off by 4e-6 and 2e-5 here.
    """
    inputs = random_inputs(150)
    inputs = float32(inputs._replace(log_decay=speed * inputs.log_decay))
    start = np.zeros((2, 3, 8, 5), np.float32)
    for x, y in zip(compiled(inputs, start), recurrence(inputs, start), strict=True):
        np.testing.assert_allclose(x, y, atol=5e-7)


def test_equal_keys_without_decay_are_stable():
    """The change of a token is what all earlier ones left over: 64 nearly equal equations."""
    inputs = random_inputs(128)._replace(k=np.ones((2, 128, 3, 8)), log_decay=np.zeros((2, 128, 3)))
    zero = np.zeros((2, 3, 8, 5))
    output, _ = compiled(float32(inputs), jnp.asarray(zero, jnp.float32))
    np.testing.assert_allclose(output, recurrence(inputs, zero)[0], atol=2e-5)


def test_padding_leaves_no_trace():
    inputs = random_inputs(100)
    real = np.random.default_rng(2).uniform(size=(1, 100, 1)) < 0.7
    padded = inputs._replace(log_decay=inputs.log_decay * real, beta=inputs.beta * real)
    kept = DeltaInputs(*(x[:, real[0, :, 0]] for x in inputs))
    zero = jnp.zeros((2, 3, 8, 5))
    (outputs, matrix), (expected, last) = (compiled(float32(x), zero) for x in (padded, kept))
    np.testing.assert_allclose(matrix, last, atol=1e-5)
    np.testing.assert_allclose(outputs[:, real[0, :, 0]], expected, atol=1e-5)


def steps(inputs, matrix):
    """Return the same, token by token."""

    def step(matrix, token):
        output, matrix = gated_delta(DeltaInputs(*(x[:, None] for x in token)), matrix)
        return matrix, output[:, 0]

    matrix, outputs = jax.lax.scan(step, matrix, DeltaInputs(*(x.swapaxes(0, 1) for x in inputs)))
    return outputs.swapaxes(0, 1), matrix


def test_gradients_equal_those_of_single_steps_and_finite_differences():
    """Across the boundary of two chunks."""
    inputs = random_inputs(70)
    start = np.random.default_rng(1).normal(size=(2, 3, 8, 5))
    weights = [np.random.default_rng(3).normal(size=shape) for shape in ((2, 70, 3, 5), start.shape)]

    def loss(run, *leaves):
        results = run(DeltaInputs(*leaves[:-1]), leaves[-1])
        return sum((x * w).sum() for x, w in zip(results, weights, strict=True))

    leaves = [*inputs, start]
    narrow = [jnp.asarray(x, jnp.float32) for x in leaves]
    gradients, expected = (
        jax.jit(jax.grad(functools.partial(loss, run), range(6)))(*narrow) for run in (gated_delta, steps)
    )
    for actual, one_by_one in zip(gradients, expected, strict=True):
        np.testing.assert_allclose(actual, one_by_one, rtol=0, atol=2e-5 * np.abs(one_by_one).max())
    rng = np.random.default_rng(4)
    for i, gradient in enumerate(gradients):
        direction = rng.normal(size=leaves[i].shape)
        ends = [
            loss(recurrence, *leaves[:i], leaves[i] + step * direction, *leaves[i + 1 :])
            for step in (1e-5, -1e-5)
        ]
        slope = (ends[0] - ends[1]) / 2e-5
        assert float((gradient * direction).sum()) == pytest.approx(slope, rel=1e-3, abs=1e-3)


@NEEDS_TORCH
@pytest.mark.parametrize(("form", "length"), [("recurrent", 1), ("recurrent", 70), ("chunk", 150)])
def test_the_rule_equals_that_of_transformers(form, length):
    """Both of their forms, across a boundary of our chunks."""
    import torch
    from transformers.models.qwen3_5 import modeling_qwen3_5 as qwen

    inputs = random_inputs(length)
    start = np.random.default_rng(1).normal(size=(2, 3, 8, 5))
    rule = getattr(qwen, f"torch_{form}_gated_delta_rule")
    q, k, v, log_decay, beta, initial = (torch.from_numpy(np.float32(x)) for x in (*inputs, start))
    expected = rule(
        q,
        k,
        v,
        g=log_decay,
        beta=beta,
        initial_state=initial,
        output_final_state=True,
        use_qk_l2norm_in_kernel=True,
    )
    actual = compiled(float32(inputs), jnp.asarray(start, jnp.float32))
    for x, y in zip(actual, expected, strict=True):
        np.testing.assert_allclose(x, y.numpy(), atol=2e-5)


def test_the_convolution_of_the_docstring():
    x, weight, tail = (jnp.array(x, jnp.float32) for x in ([[[1], [2]]], [[1, 2]], [[[5]]]))
    out, tail = causal_convolution(x, weight, tail)
    assert out.ravel().tolist() == [7, 5]
    assert tail.ravel().tolist() == [2]


def test_a_convolution_in_parts_equals_that_of_the_whole_sequence():
    rng = np.random.default_rng(0)
    x, weight = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((2, 9, 6), (6, 4)))
    whole, last = causal_convolution(x, weight, jnp.zeros((2, 3, 6)))
    parts, tail = [], jnp.zeros((2, 3, 6))
    for part in (x[:, :1], x[:, 1:3], x[:, 3:]):
        out, tail = causal_convolution(part, weight, tail)
        parts.append(out)
    np.testing.assert_allclose(jnp.concatenate(parts, axis=1), whole, atol=1e-6)
    np.testing.assert_array_equal(tail, last)
    padded = np.pad(np.asarray(x), [(0, 0), (3, 0), (0, 0)])
    expected = sum(padded[:, i : i + 9] * np.asarray(weight)[:, i] for i in range(4))
    np.testing.assert_allclose(whole, expected, atol=1e-5)
