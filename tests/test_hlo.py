"""FLOPs of compiled programs, against products of sizes counted by hand."""

import jax
import jax.numpy as jnp
import pytest

from sdft_jax.hlo import matmul_flops

X, W = jnp.ones((4, 8)), jnp.ones((5, 8, 8))
PRODUCT = 2 * 4 * 8 * 8
"""Of X and one matrix of W: a multiplication and an addition for each of 4 x 8 x 8."""


def text_of(function, *arguments) -> str:
    return jax.jit(function).lower(*arguments).compile().as_text()


def chain(x, w):
    return jax.lax.scan(lambda carry, matrix: (jnp.tanh(carry @ matrix), None), x, w)[0]


def nested(x, w):
    return jax.lax.scan(lambda carry, _: (chain(carry, w), None), x, None, length=3)[0]


def until(x, w, n):
    body = lambda carry: (carry[0] + 1, jnp.tanh(carry[1] @ w[0]))  # noqa: E731
    return jax.lax.while_loop(lambda carry: carry[0] < n, body, (0, x))[1]


def either(choice, x, w):
    return jax.lax.cond(choice, lambda: x @ w[0] @ w[1], lambda: x @ w[2])


def one_of(choice, x, w):
    branches = [lambda: x @ w[0], lambda: x @ w[0] @ w[1] @ w[2], lambda: x @ w[3] @ w[4], lambda: x]
    return jax.lax.switch(choice, branches)


COUNTS = {
    "one product": (lambda x, w: x @ w[0], (X, W), PRODUCT),
    "a matrix and a vector": (lambda x, v: x @ v, (X, X[0]), 2 * 4 * 8),
    "bfloat16": (lambda x, w: x.astype("bfloat16") @ w[0].astype("bfloat16"), (X, W), PRODUCT),
    "a scan": (chain, (X, W), 5 * PRODUCT),
    "a scan in a scan": (nested, (X, W), 3 * 5 * PRODUCT),
    "a gradient": (
        jax.grad(lambda x, w: chain(x, w).sum(), argnums=(0, 1)), (X, W), 3 * 5 * PRODUCT
    ),
    "a batch": (
        lambda a, b: jnp.einsum("bij,bkj->bik", a, b), (jnp.ones((3, 4, 5)), jnp.ones((3, 6, 5))),
        2 * 3 * 4 * 6 * 5,
    ),
    "two axes contracted": (
        lambda a, b: jnp.einsum("ijk,jkl->il", a, b), (jnp.ones((3, 4, 5)), jnp.ones((4, 5, 7))),
        2 * 3 * 7 * 4 * 5,
    ),
    "no product": (lambda x, w: jnp.tanh(x) + 1, (X, W), 0),
    "the costlier of two branches": (either, (True, X, W), 2 * PRODUCT),
    "the costliest of four branches": (one_of, (1, X, W), 3 * PRODUCT),
}  # fmt: skip


@pytest.mark.parametrize("what", COUNTS)
def test_flops_are_those_counted_by_hand(what):
    function, arguments, flops = COUNTS[what]
    assert matmul_flops(text_of(function, *arguments)) == flops


def test_a_loop_that_may_end_early_takes_the_trips_given():
    text = text_of(until, X, W, 3)
    assert matmul_flops(text) == PRODUCT
    assert matmul_flops(text, unknown_trips=7) == 7 * PRODUCT


def test_trips_given_do_not_touch_loops_whose_trips_are_known():
    def both(x, w, n):
        return chain(until(x, w, n), w)

    assert matmul_flops(text_of(both, X, W, 3), unknown_trips=10) == (10 + 5) * PRODUCT
    assert matmul_flops(text_of(chain, X, W), unknown_trips=10) == 5 * PRODUCT
