"""FLOPs, collectives and cycles of compiled programs, compared with counts by hand."""

import ast
import doctest
import functools
import inspect
import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

from sdft_jax.plan import hlo
from sdft_jax.plan.hlo import Collective, collectives, estimated_cycles, matmul_flops, matmul_flops_by_scope

X, W = jnp.ones((4, 8)), jnp.ones((5, 8, 8))
PRODUCT = 2 * 4 * 8 * 8
"""The FLOPs of X times one matrix of W: a multiplication and an addition for each of 4 x 8 x 8."""

PATTERNS = [name for name, value in vars(hlo).items() if isinstance(value, re.Pattern)]
DOCUMENTATION = {
    statement.targets[0].id: string.value.value
    for statement, string in itertools.pairwise(ast.parse(inspect.getsource(hlo)).body)
    if isinstance(statement, ast.Assign) and isinstance(string, ast.Expr)
}
"""The string below each variable of the module."""


@pytest.mark.parametrize("name", PATTERNS)
def test_pattern_matches_the_examples_below_it(name):
    examples = doctest.DocTestParser().get_doctest(DOCUMENTATION[name], vars(hlo), name, hlo.__file__, None)
    report = []
    results = doctest.DocTestRunner().run(examples, out=report.append)
    assert results.attempted > 0
    assert results.failed == 0, "".join(report)


def compiled_text(function, *arguments) -> str:
    return jax.jit(function).lower(*arguments).compile().as_text()


def chain(x, w):
    return jax.lax.scan(lambda carry, matrix: (jnp.tanh(carry @ matrix), None), x, w)[0]


def nested(x, w):
    return jax.lax.scan(lambda carry, _: (chain(carry, w), None), x, None, length=3)[0]


def dynamic_trip_count(x, w, n):
    body = lambda carry: (carry[0] + 1, jnp.tanh(carry[1] @ w[0]))  # noqa: E731
    return jax.lax.while_loop(lambda carry: carry[0] < n, body, (0, x))[1]


def two_branches(choice, x, w):
    return jax.lax.cond(choice, lambda: x @ w[0] @ w[1], lambda: x @ w[2])


def four_branches(choice, x, w):
    branches = [lambda: x @ w[0], lambda: x @ w[0] @ w[1] @ w[2], lambda: x @ w[3] @ w[4], lambda: x]
    return jax.lax.switch(choice, branches)


COUNTS = {
    "one matrix product": (lambda x, w: x @ w[0], (X, W), PRODUCT),
    "matrix times vector": (lambda x, v: x @ v, (X, X[0]), 2 * 4 * 8),
    "bfloat16": (lambda x, w: x.astype("bfloat16") @ w[0].astype("bfloat16"), (X, W), PRODUCT),
    "scan": (chain, (X, W), 5 * PRODUCT),
    "nested scan": (nested, (X, W), 3 * 5 * PRODUCT),
    "gradient": (jax.grad(lambda x, w: chain(x, w).sum(), argnums=(0, 1)), (X, W), 3 * 5 * PRODUCT),
    "batched product": (
        lambda a, b: jnp.einsum("bij,bkj->bik", a, b),
        (jnp.ones((3, 4, 5)), jnp.ones((3, 6, 5))),
        2 * 3 * 4 * 6 * 5,
    ),
    "two contracted axes": (
        lambda a, b: jnp.einsum("ijk,jkl->il", a, b),
        (jnp.ones((3, 4, 5)), jnp.ones((4, 5, 7))),
        2 * 3 * 7 * 4 * 5,
    ),
    "no matrix product": (lambda x, w: jnp.tanh(x) + 1, (X, W), 0),
    "more expensive of two branches": (two_branches, (True, X, W), 2 * PRODUCT),
    "most expensive of four branches": (four_branches, (1, X, W), 3 * PRODUCT),
}


@pytest.mark.parametrize("name", COUNTS)
def test_flops_equal_the_count_by_hand(name):
    function, arguments, flops = COUNTS[name]
    assert matmul_flops(compiled_text(function, *arguments)) == flops


def test_while_loop_without_a_known_trip_count_counts_once():
    def both(x, w, n):
        return chain(dynamic_trip_count(x, w, n), w)

    assert matmul_flops(compiled_text(dynamic_trip_count, X, W, 3)) == PRODUCT
    assert matmul_flops(compiled_text(both, X, W, 3)) == (1 + 5) * PRODUCT


def test_trip_count_is_the_bound_in_the_condition():
    """Lowered programs and TPU programs have no `known_trip_count`."""
    lowered = jax.jit(lambda x, w: nested(x, w)).lower(X, W).compiler_ir(dialect="hlo").as_hlo_text()
    assert "known_trip_count" not in lowered
    assert matmul_flops(lowered) == 3 * 5 * PRODUCT


def test_trip_count_of_a_loop_with_early_exit_is_its_bound():
    """The decode loop is such a loop. The CPU compiler puts the comparison in a fusion."""

    def early_exit(x, w):
        def body(carry):
            return carry[0] + 1, jnp.tanh(carry[1] @ w[0])

        return jax.lax.while_loop(lambda carry: (carry[0] < 6) & ~jnp.all(carry[1] > 2), body, (0, x))[1]

    assert matmul_flops(compiled_text(early_exit, X, W)) == 6 * PRODUCT


SIZE = 16 * 4
"""The bytes of the array that the collectives below receive as operand or return."""
COLLECTIVES = {
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


@pytest.mark.parametrize("kind", COLLECTIVES)
def test_collective_counts_the_bytes_that_a_device_receives(kind):
    collective, spec, received = COLLECTIVES[kind]
    mesh = Mesh(np.asarray(jax.devices()), "i")

    @functools.partial(jax.shard_map, mesh=mesh, in_specs=spec, out_specs=PartitionSpec(), check_vma=False)
    def three_times(x):
        def body(carry, _):
            with jax.named_scope("here"):
                return carry + jnp.sum(collective(x * carry)), None

        return jax.lax.scan(body, 1.0, None, length=3)[0]

    counted = [x for x in collectives(compiled_text(three_times, jnp.ones(16))) if x.kind == kind]
    assert [(x.times, x.bytes) for x in counted] == [(3, 3 * received)]
    assert "here" in counted[0].scope


TPU_PROGRAM = """\
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

%started (p: bf16[8]) -> bf16[32] {
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
  %async-collective-start.5 = bf16[32]{0} fusion(%b), kind=kCustom, calls=%started
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


def test_asynchronous_collective_counts_once_and_a_fused_all_reduce_as_reduce_scatter():
    assert set(collectives(TPU_PROGRAM)) == {
        Collective("all-gather", "jit(f)/decode/dot", 11, 11 * 64 * 3 / 4),
        Collective("collective-permute", "jit(f)/shift", 1, 16),
        Collective("reduce-scatter", "jit(f)/decode/sum", 11, 11 * (16 + 2) * 2 * 3),
    }


def test_cycles_are_the_compilers_estimates_times_the_trip_count():
    assert estimated_cycles(TPU_PROGRAM) == {"jit(f)/decode/mul": 11 * 100, "jit(f)/end": 7}


def test_scopes_of_a_lowered_program_are_complete():
    """In a lowered program, the computation of a loop or a call has only its own part of the scope."""

    def outer(x, w):
        with jax.named_scope("first"):
            x = chain(x, w)
        with jax.named_scope("second"):
            return jax.checkpoint(nested)(x, w)

    lowered = jax.jit(outer).lower(X, W)
    flops = matmul_flops_by_scope(lowered.as_text(dialect="hlo", debug_info=True))
    assert sum(count for scope, count in flops.items() if "/first/" in scope) == 5 * PRODUCT
    assert sum(count for scope, count in flops.items() if "/second/" in scope) == 15 * PRODUCT
    assert sum(flops.values()) == 20 * PRODUCT
