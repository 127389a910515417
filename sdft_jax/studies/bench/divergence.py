"""The chunked divergence, compared with its head products alone and with a divergence over full logits.

Each computes the value and gradients of the reverse KL over the full vocabulary. The physical limit is the
time of the four matrix products of the heads: logits of student and teacher, gradients of hidden states and
head. Memory is the size of the temporaries that the compiler allocates. With --topology, nothing runs: the
results are the TPU compiler's estimates for one chip.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from sdft_jax.algorithm.chunked_loss import FactoredLogits
from sdft_jax.algorithm.divergence import divergence
from sdft_jax.config.settings import DivergenceConfig
from sdft_jax.plan.hlo import estimated_cycles
from sdft_jax.plan.show import compiler
from sdft_jax.plan.topologies import Topology, parse_topology, topology_devices
from sdft_jax.reporting.charts import Bar
from sdft_jax.reporting.hardware import describe_hardware
from sdft_jax.sharding import Sharding, make_mesh
from sdft_jax.studies.bench.results import Measured, conditions, each_case, natural, parser, positive, publish
from sdft_jax.studies.bench.timing import ratios, turns

Arrays = tuple[Array, Array, Array, Array]
"""Hidden states [T, D] and head [V, D] of the student, then of the teacher."""
Side = Callable[..., Any]


def chunked(arrays: Arrays, chunk: int, sharding: Sharding) -> tuple[Array, Any]:
    """Compute value, gradients and per-token statistics in chunks, as in `algorithm/update.py`."""

    def value(student: Float[Array, "T D"], head: Float[Array, "V D"], teacher: Array, teacher_head: Array):
        tokens = student.shape[:1]
        weights, targets = jnp.full((1, *tokens), 1 / tokens[0]), jnp.zeros((1, *tokens), jnp.int32)
        roles = FactoredLogits(student[None], head), FactoredLogits(teacher[None], teacher_head)
        return divergence(*roles, targets, weights, DivergenceConfig(chunk=chunk), sharding)

    return jax.value_and_grad(value, argnums=(0, 1), has_aux=True)(*arrays)


def whole(arrays: Arrays, chunk: int, sharding: Sharding) -> tuple[Array, Any]:
    """Compute value and gradients from full logits [T, V], with JAX's automatic differentiation."""
    del chunk, sharding

    def value(student: Float[Array, "T D"], head: Float[Array, "V D"], teacher: Array, teacher_head: Array):
        log_s, log_t = (
            jax.nn.log_softmax(jnp.einsum("td,vd->tv", h, w, preferred_element_type=jnp.float32))
            for h, w in ((student, head), (teacher, teacher_head))
        )
        return jnp.mean(jnp.sum(jnp.exp(log_s) * (log_s - log_t), axis=-1))

    return jax.value_and_grad(value, argnums=(0, 1))(*arrays)


def products(arrays: Arrays, chunk: int, sharding: Sharding) -> tuple[Array, Array]:
    """Compute only the four matrix products of `chunked`, with equal chunks; the results have no meaning."""
    del sharding
    student, head, teacher, teacher_head = arrays

    def body(d_head: Array, hiddens: tuple[Array, Array]):
        multiply = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
        own, other = (
            multiply("nd,vd->nv", *pair) for pair in zip(hiddens, (head, teacher_head), strict=True)
        )
        d_hidden = multiply("nv,vd->nd", own.astype(head.dtype), head)
        d_head += multiply("nv,nd->vd", other.astype(head.dtype), hiddens[0])
        return d_head, d_hidden.astype(head.dtype)

    shape = (-1, min(chunk, len(student)), student.shape[-1])
    hiddens = (student.reshape(shape), teacher.reshape(shape))
    return jax.lax.scan(body, jnp.zeros(head.shape, jnp.float32), hiddens)


SIDES: Mapping[str, Side] = {"chunked": chunked, "products": products, "whole": whole}


def main(argv: Sequence[str]) -> None:
    """Run the cases that the command line selects."""
    args = _parse_arguments(argv)
    start_conditions = conditions()
    topology = parse_topology(args.topology) if args.topology else None
    device = topology_devices(topology)[0] if topology else jax.devices()[0]
    sharding = Sharding(make_mesh(devices=[device]))
    dtype = ("float32" if device.platform == "cpu" else "bfloat16") if args.dtype == "auto" else args.dtype

    def measure_case(tokens: int, report: Callable[[str], None]) -> tuple[dict[str, Any], list[Bar], Any]:
        seconds, memory = measure(tokens, args, sharding, dtype, topology, report)
        measurements = {"tokens": tokens, "seconds": seconds, "temporary bytes": memory}
        return *compare(tokens, seconds, memory), measurements

    rows, bars, details = each_case("divergence", args.tokens, measure_case, "{} tokens".format)
    machine = (
        f"compiled for one chip of {topology.name} with {compiler()}" if topology else describe_hardware()
    )
    shape = f"vocabulary {args.vocabulary}, width {args.width}, {dtype}, chunks of {args.chunk}"
    publish(Measured("divergence", rows, bars, details, f"{shape}; {machine}", start_conditions), args.output)


def _parse_arguments(argv: Sequence[str]) -> argparse.Namespace:
    options = parser("divergence", __doc__)
    options.add_argument(
        "--tokens",
        type=positive,
        nargs="+",
        default=[1024, 2048, 4096],
        help="numbers of tokens (default: 1024 2048 4096)",
    )
    options.add_argument(
        "--vocabulary", type=positive, default=151936, help="vocabulary size (default: 151936)"
    )
    options.add_argument(
        "--width",
        type=positive,
        default=896,
        help="size of the hidden states (default: 896, as in Qwen2.5-0.5B)",
    )
    options.add_argument(
        "--chunk", type=positive, default=512, help="tokens per chunk of logits (default: 512)"
    )
    options.add_argument(
        "--whole-up-to",
        type=natural,
        default=4096,
        metavar="TOKENS",
        help="maximum number of tokens to measure with full logits (default: 4096)",
    )
    options.add_argument(
        "--rounds",
        type=positive,
        default=3,
        help="measured rounds, in which the implementations alternate (default: 3)",
    )
    options.add_argument(
        "--dtype",
        choices=["auto", "float32", "bfloat16"],
        default="auto",
        help="dtype of hidden states and heads (default: auto, which is float32 on a CPU, else bfloat16)",
    )
    options.add_argument(
        "--topology",
        metavar="NAME",
        help="estimate with the TPU compiler for one chip of this slice, such as v5e-1",
    )
    return options.parse_args(argv)


def measure(
    tokens: int,
    args: argparse.Namespace,
    sharding: Sharding,
    dtype: str,
    topology: Topology | None,
    report: Callable[[str], None],
) -> tuple[dict[str, list[float]], dict[str, int]]:
    """Return seconds of each round (with a topology: one estimate) and bytes of temporaries, by side."""
    shapes, programs = [(tokens, args.width), (args.vocabulary, args.width)] * 2, {}
    for name, side in SIDES.items():
        if name != "whole" or tokens <= args.whole_up_to:
            report(f"compiling {name}")
            programs[name] = _compile(side, shapes, dtype, args.chunk, sharding)
    memory = {name: program.memory_analysis().temp_size_in_bytes for name, program in programs.items()}
    if topology is None:
        arrays = _random(shapes, dtype)
        calls = {name: functools.partial(_run, program, arrays) for name, program in programs.items()}
        return turns(calls, args.rounds, report), memory
    cycles = {name: sum(estimated_cycles(program.as_text()).values()) for name, program in programs.items()}
    return {name: [count / (topology.generation.clock * 1e9)] for name, count in cycles.items()}, memory


def _compile(side: Side, shapes: Sequence[Any], dtype: str, chunk: int, sharding: Sharding) -> Any:
    abstract = tuple(jax.ShapeDtypeStruct(shape, dtype, sharding=sharding.replicated) for shape in shapes)
    return jax.jit(functools.partial(side, chunk=chunk, sharding=sharding)).lower(abstract).compile()


def _random(shapes: Sequence[Any], dtype: str) -> Arrays:
    keys, scales = jax.random.split(jax.random.key(0), 4), (1.0, 0.02) * 2
    student, head, teacher, teacher_head = (
        scale * jax.random.normal(key, shape, dtype)
        for key, shape, scale in zip(keys, shapes, scales, strict=True)
    )
    return student, head, teacher, teacher_head


def _run(program: Any, arrays: Arrays) -> None:
    jax.block_until_ready(program(arrays))


def compare(
    tokens: int, seconds: Mapping[str, Sequence[float]], memory: Mapping[str, float]
) -> tuple[dict[str, Any], list[Bar]]:
    """Return a table row and its ratios, from seconds by round and bytes of temporaries by side."""
    row: dict[str, Any] = {"tokens": tokens}
    for name in seconds:
        row[name] = f"{sorted(seconds[name])[len(seconds[name]) // 2]:.3g} s, {memory[name] / 2**20:.0f} MiB"
    slower = ratios(seconds["products"], seconds["chunked"])[1]
    bars = [
        Bar(f"{tokens} tokens", "time, head products", ratios(seconds["chunked"], seconds["products"])[0])
    ]
    row["times its products"] = slower
    if "whole" in seconds:
        faster, faster_text = ratios(seconds["chunked"], seconds["whole"])
        smaller = memory["whole"] / memory["chunked"]
        row |= {"times faster than whole": faster_text, "times less memory": f"{smaller:.1f}"}
        bars += [
            Bar(f"{tokens} tokens", "time, full logits", faster),
            Bar(f"{tokens} tokens", "memory, full logits", smaller),
        ]
    return row, bars
