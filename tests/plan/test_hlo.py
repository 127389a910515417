"""FLOPs, exchanges and cycles of compiled programs, against what is counted by hand."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

from sdft_jax.plan.hlo import Collective, collectives, estimated_cycles, matmul_flops, matmul_flops_by_scope

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
    "a gradient": (jax.grad(lambda x, w: chain(x, w).sum(), argnums=(0, 1)), (X, W), 3 * 5 * PRODUCT),
    "a batch": (
        lambda a, b: jnp.einsum("bij,bkj->bik", a, b),
        (jnp.ones((3, 4, 5)), jnp.ones((3, 6, 5))),
        2 * 3 * 4 * 6 * 5,
    ),
    "two axes contracted": (
        lambda a, b: jnp.einsum("ijk,jkl->il", a, b),
        (jnp.ones((3, 4, 5)), jnp.ones((4, 5, 7))),
        2 * 3 * 7 * 4 * 5,
    ),
    "no product": (lambda x, w: jnp.tanh(x) + 1, (X, W), 0),
    "the costlier of two branches": (either, (True, X, W), 2 * PRODUCT),
    "the costliest of four branches": (one_of, (1, X, W), 3 * PRODUCT),
}


@pytest.mark.parametrize("what", COUNTS)
def test_flops_are_those_counted_by_hand(what):
    function, arguments, flops = COUNTS[what]
    assert matmul_flops(text_of(function, *arguments)) == flops


def test_a_loop_whose_trips_nothing_tells_is_one_trip():
    def both(x, w, n):
        return chain(until(x, w, n), w)

    assert matmul_flops(text_of(until, X, W, 3)) == PRODUCT
    assert matmul_flops(text_of(both, X, W, 3)) == (1 + 5) * PRODUCT


def test_a_bound_in_the_condition_is_a_number_of_trips():
    """As TPU programs and lowered ones have it, whose loops do not tell their trips."""
    lowered = jax.jit(lambda x, w: nested(x, w)).lower(X, W).compiler_ir(dialect="hlo").as_hlo_text()
    assert "known_trip_count" not in lowered
    assert matmul_flops(lowered) == 3 * 5 * PRODUCT


def test_of_a_loop_that_may_end_before_its_bound_the_bound_counts():
    """As in decoding: compiled for a CPU, the comparison stands in a fusion."""

    def early(x, w):
        def body(carry):
            return carry[0] + 1, jnp.tanh(carry[1] @ w[0])

        return jax.lax.while_loop(lambda carry: (carry[0] < 6) & ~jnp.all(carry[1] > 2), body, (0, x))[1]

    assert matmul_flops(text_of(early, X, W)) == 6 * PRODUCT


SIZE = 16 * 4
"""Bytes of what is exchanged below."""
EXCHANGES = {
    "all-reduce": (lambda x: jax.lax.psum(x, "i"), PartitionSpec(), 2 * SIZE * 7 / 8),
    "all-gather": (lambda x: jax.lax.all_gather(x, "i", tiled=True), PartitionSpec("i"), SIZE * 7 / 8),
    "reduce-scatter": (lambda x: jax.lax.psum_scatter(x, "i", tiled=True), PartitionSpec(), SIZE * 7 / 8),
    "all-to-all": (
        lambda x: jax.lax.all_to_all(x.reshape(8, 2), "i", 0, 0).reshape(16),
        PartitionSpec(),
        SIZE * 7 / 8,
    ),
    "collective-permute": (
        lambda x: jax.lax.ppermute(x, "i", [(i, (i + 1) % 8) for i in range(8)]),
        PartitionSpec(),
        SIZE,
    ),
}


@pytest.mark.parametrize("kind", EXCHANGES)
def test_bytes_that_a_device_receives(kind):
    exchange, spec, received = EXCHANGES[kind]
    mesh = Mesh(np.asarray(jax.devices()), "i")

    @functools.partial(jax.shard_map, mesh=mesh, in_specs=spec, out_specs=PartitionSpec(), check_vma=False)
    def thrice(x):
        def body(carry, _):
            with jax.named_scope("here"):
                return carry + jnp.sum(exchange(x * carry)), None

        return jax.lax.scan(body, 1.0, None, length=3)[0]

    found = [x for x in collectives(text_of(thrice, jnp.ones(16))) if x.kind == kind]
    assert [(x.times, x.bytes) for x in found] == [(3, 3 * received)]
    assert "here" in found[0].scope


TPU = """\
HloModule jit_update

%condition (c: (s32[], bf16[4])) -> pred[] {
  %c = (s32[]{:T(128)}, bf16[4]) parameter(0)
  %one = s32[]{:T(128)} constant(1)
  %bound = s32[]{:T(128)} constant(12)
  %count = s32[]{:T(128)} get-tuple-element(%c), index=0
  %next = s32[]{:T(128)S(6)} add(%count, %one), metadata={op_name="add.1"}
  %lt = pred[]{:T(512)S(6)} compare(%next, %bound), direction=LT
  %live = pred[]{:T(512)} parameter(1)
  ROOT %and = pred[]{:T(512)} and(%lt, %live)
}

%begun (p: bf16[8]) -> bf16[32] {
  ROOT %g = bf16[32]{0} all-gather(%p), channel_id=5, replica_groups=mesh['a'=2,'b'=4] {'b'}, metadata={op_name="jit(f)/decode/dot"}
}

%async_collective_fusion.1 (p: bf16[8]) -> bf16[32] {
  ROOT %g = bf16[32]{0} all-gather(%p), channel_id=5, replica_groups=mesh['a'=2,'b'=4] {'b'}, metadata={op_name="jit(f)/decode/dot"}
}

%ended (p: bf16[8]) -> bf16[32] {
  ROOT %g = bf16[32]{0} all-gather(%p), channel_id=5, replica_groups=mesh['a'=2,'b'=4] {'b'}, metadata={op_name="jit(f)/decode/dot"}
}

%all-reduce-scatter.3.clone.1 (p: bf16[8,8], q: bf16[8]) -> (bf16[2,8], bf16[2]) {
  %r = (bf16[8,8]{1,0}, bf16[8]{0}) all-reduce(%p, %q), channel_id=6, replica_groups=mesh['a'=2,'b'=4] {'b'}, use_global_device_ids=true
  ROOT %s = bf16[2,8]{1,0} dynamic-slice(%r, %i, %j), dynamic_slice_sizes={2,8}
}

%body (b: (s32[], bf16[4])) -> (s32[], bf16[4]) {
  %b = (s32[]{:T(128)}, bf16[4]) parameter(0)
  %async-collective-start.5 = bf16[32]{0} fusion(%b), kind=kCustom, calls=%begun
  %fusion.1 = bf16[32]{0} fusion(%b), kind=kCustom, calls=%async_collective_fusion.1, metadata={op_name="jit(f)/decode/mul"}, backend_config={"window_config":{"estimated_cycles":"100"}}
  %async-collective-done.5 = bf16[32]{0} fusion(%fusion.1), kind=kCustom, calls=%ended
  %fusion.2 = (bf16[2,8]{1,0}, bf16[2]{0}) fusion(%b, %b), kind=kCustom, calls=%all-reduce-scatter.3.clone.1, metadata={op_name="jit(f)/decode/sum"}
  ROOT %t = (s32[], bf16[4]) tuple(%b)
}

ENTRY %main (x: bf16[4]) -> bf16[4] {
  %x = bf16[4] parameter(0)
  %start = (bf16[8], bf16[8]) collective-permute-start(%x), source_target_pairs={{0,1},{1,0}}, metadata={op_name="jit(f)/shift"}
  %while.1 = (s32[], bf16[4]) while(%x), condition=%condition, body=%body
  ROOT %f = bf16[4] fusion(%while.1), calls=%none, metadata={op_name="jit(f)/end"}, backend_config={"estimated_cycles":"7"}
}
"""  # noqa: E501


def test_an_exchange_beside_computations_counts_once_and_a_fused_one_for_what_it_does():
    assert set(collectives(TPU)) == {
        Collective("all-gather", "jit(f)/decode/dot", 11, 11 * 64 * 3 / 4),
        Collective("collective-permute", "jit(f)/shift", 1, 16),
        Collective("reduce-scatter", "jit(f)/decode/sum", 11, 11 * (16 + 2) * 2 * 3),
    }


def test_cycles_are_the_compilers_times_the_trips():
    assert estimated_cycles(TPU) == {"jit(f)/decode/mul": 11 * 100, "jit(f)/end": 7}


def test_scopes_before_compilation_are_told_in_whole():
    """Loops and calls stand in computations of their own, which know only their part of the scope."""

    def outer(x, w):
        with jax.named_scope("first"):
            x = chain(x, w)
        with jax.named_scope("second"):
            return jax.checkpoint(nested)(x, w)

    lowered = jax.jit(outer).lower(X, W)
    found = matmul_flops_by_scope(lowered.as_text(dialect="hlo", debug_info=True))
    assert sum(count for scope, count in found.items() if "/first/" in scope) == 5 * PRODUCT
    assert sum(count for scope, count in found.items() if "/second/" in scope) == 15 * PRODUCT
    assert sum(found.values()) == 20 * PRODUCT
